#include "shared/process/launch.hpp"
#include <cerrno>
#include <sys/wait.h>

namespace dstack::process
{

namespace
{
/// In the middle process: forks the real one, says its pid, and is gone. Async-signal-safe.
[[noreturn]] void middle(const detail::Prepared& prepared, const Spec& spec, int pid_out, int go, int report)
{
    if (setsid() < 0) { _exit(1); }
    const pid_t pid = fork();
    if (pid < 0) { _exit(1); }
    if (pid > 0)
    {
        const ssize_t n = write(pid_out, &pid, sizeof pid);
        _exit(n == static_cast<ssize_t>(sizeof pid) ? 0 : 1);
    }
    // The session's leader is gone, so this process can never get a terminal. It waits until it has been recorded.
    char byte = 0;
    ssize_t n = 0;
    do { n = read(go, &byte, 1); } while (n < 0 && errno == EINTR);
    if (n != 1) { _exit(127); }
    if (setpgid(0, 0) != 0) { _exit(127); } // its own group: a signal to it reaches what it forks, and nobody else
    detail::execute(prepared, spec, 0, report, false);
}
} // namespace

Result<Identity> spawn_detached(const Spec& spec, const std::function<Result<Done>(const Identity&)>& recorded)
{
    if (spec.out.kind == Sink::Kind::capture || spec.err.kind == Sink::Kind::capture || spec.parent_death_signal != 0)
    {
        return Error{Errc::invalid_argument, "run: a detached process cannot be captured nor die with its parent"};
    }
    auto prepared = detail::prepare(spec);
    if (!prepared) { return std::move(prepared).error(); }
    auto pid_pipe = detail::make_pipe();
    if (!pid_pipe) { return std::move(pid_pipe).error(); }
    auto go = detail::make_pipe();
    if (!go) { return std::move(go).error(); }
    auto report = detail::make_pipe();
    if (!report) { return std::move(report).error(); }

    pid_t between = 0;
    int fork_error = 0;
    {
        const detail::SignalsBlocked blocked;
        between = fork();
        fork_error = errno;
        if (between == 0)
        {
            // The writing end of `go` must be open here only in the caller: its death is the end of the file.
            close(go->write.get());
            middle(*prepared, spec, pid_pipe->write.get(), go->read.get(), report->write.get());
        }
    }
    if (between < 0) { return errno_error("run " + spec.argv[0], fork_error); }
    pid_pipe->write.reset();
    report->write.reset();
    go->read.reset();
    pid_t pid = 0;
    ssize_t n = 0;
    do { n = read(pid_pipe->read.get(), &pid, sizeof pid); } while (n < 0 && errno == EINTR);
    while (waitpid(between, nullptr, 0) < 0 && errno == EINTR) {}
    if (n != static_cast<ssize_t>(sizeof pid)) { return Error{Errc::resource_exhausted, "run " + spec.argv[0] + ": cannot fork"}; }

    auto who = identify(pid); // it waits for us, so it is there
    if (!who) { return std::move(who).error(); }
    if (recorded)
    {
        auto done = recorded(*who);
        if (!done) { return std::move(done).error(); } // `go` closes: the process ends by itself
    }
    const char byte = 1;
    do { n = write(go->write.get(), &byte, 1); } while (n < 0 && errno == EINTR);
    if (n != 1) { return errno_error("run " + spec.argv[0], errno); }
    const auto failure = detail::read_failure(report->read.get());
    if (failure) { return detail::failure_error(*prepared, spec, *failure); }
    return who;
}

} // namespace dstack::process
