#pragma once
#include "shared/process/fd.hpp"
#include "shared/process/identity.hpp"
#include "shared/runtime/scope.hpp"
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace dstack::process
{

/// Where a child's stdout or stderr goes.
struct Sink
{
    enum class Kind { null, inherit, file, capture };
    Kind kind = Kind::null;
    std::string path{}; ///< file: created with mode 0600, appended to
};

/// What to start. Nothing is inherited but what is named here: no environment, no descriptors, no signal state.
struct Spec
{
    std::vector<std::string> argv{}; ///< argv[0] with a slash is a path, otherwise it is searched in the usual directories
    std::vector<std::string> env{};  ///< "NAME=value", the whole environment; empty means PATH and LANG=C.UTF-8 only
    std::string cwd{};               ///< empty: the caller's
    std::string input{};             ///< what stdin gives before its end; empty means /dev/null. Secrets go here, never in argv or env
    Sink out{};
    Sink err{};
    bool new_session = false;        ///< setsid: own process group, no terminal; `kill` then reaches the whole group
    int parent_death_signal = 0;     ///< sent to the child when the thread that spawned it ends (prctl(2) PR_SET_PDEATHSIG)
    std::size_t max_output = 64 * 1024; ///< bytes kept of each captured stream; what exceeds it is read and dropped
};

/// How a process ended.
struct Exit
{
    int code = 0;   ///< exit code when signal is 0
    int signal = 0; ///< the signal that killed it, or 0
    bool ok() const { return code == 0 && signal == 0; }
};
/// "exit code 3", "killed by signal 9".
std::string to_string(Exit exit);

struct Output
{
    Exit exit{};
    std::string out{};
    std::string err{};
    bool truncated = false; ///< a captured stream was longer than max_output
};

/// A child of this process. Destroying it while it runs kills it (SIGKILL, the group when new_session) and reaps it.
class Child
{
  public:
    Child(Child&&) noexcept;
    Child& operator=(Child&&) = delete;
    ~Child();
    pid_t pid() const;
    /// Completes when the process has ended; again at once when called again.
    Task<Result<Exit>> wait();
    /// A process that has ended is no error.
    Result<Done> kill(int signal);
    /// What was captured so far; complete after wait().
    const std::string& out() const;
    const std::string& err() const;
    bool truncated() const;

  private:
    friend Result<Child> spawn(Loop& loop, const Spec& spec);
    struct Impl;
    explicit Child(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

/// Starts a child. An executable that is missing or cannot be run is an error here, not an exit code 127.
Result<Child> spawn(Loop& loop, const Spec& spec);

/// Runs to the end and captures both streams. When the time is over the child is killed: deadline_exceeded.
/// A failed exit is no error; `output_of` makes it one.
Task<Result<Output>> run(Loop& loop, Spec spec, milliseconds timeout);
Task<Result<Output>> run(Loop& loop, std::vector<std::string> argv, milliseconds timeout, std::size_t max_output);
/// As `run`, and anything but exit code 0 is an error that quotes the last lines of stderr.
Task<Result<Output>> output_of(Loop& loop, Spec spec, milliseconds timeout);

/// A process in its own session that outlives this one and needs nobody here to reap it (double fork).
/// `recorded` is called after the process exists and before it executes argv: when it fails, or when this process dies
/// meanwhile, the new process ends without having executed anything. So "running" is never unrecorded.
/// Takes a few milliseconds and touches no loop: call it through offload(). Streams: null, inherit or file.
Result<Identity> spawn_detached(const Spec& spec,
                                const std::function<Result<Done>(const Identity&)>& recorded = {});

/// Watches a process that is not our child.
class PidWatch
{
  public:
    /// not_found when that process has ended (also when another one has its pid now).
    static Result<PidWatch> open(Loop& loop, Identity who);
    PidWatch(PidWatch&&) noexcept;
    PidWatch& operator=(PidWatch&&) = delete;
    ~PidWatch();
    const Identity& who() const;
    /// Completes when it has ended; at once when it had already.
    Task<> exited();
    bool has_exited() const;
    /// Reaches this process and no other; a process that has ended is no error.
    Result<Done> kill(int signal);

  private:
    struct Impl;
    explicit PidWatch(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

enum class Terminated { already_gone, by_request, by_force };

/// SIGTERM, up to `grace` for it to end, then SIGKILL and up to `grace` again (deadline_exceeded: it is stuck in the kernel).
/// A grace of zero kills at once and waits up to 5 s.
Task<Result<Terminated>> terminate(Loop& loop, Identity who, milliseconds grace);

} // namespace dstack::process
