#pragma once
#include "shared/process/process.hpp"

namespace dstack::process::detail
{

/// Everything that a fork needs, made before it: after fork only async-signal-safe calls are allowed.
struct Prepared
{
    std::string file;
    std::vector<std::string> env;
    std::vector<char*> argv_pointers;
    std::vector<char*> env_pointers;
    Fd in, out, err;            ///< become 0, 1, 2; out and err may be the same descriptor as the caller's (inherit)
    Fd captured_out, captured_err; ///< our ends, non-blocking
};

/// `spec` must outlive the result.
Result<Prepared> prepare(const Spec& spec);

/// What a child tells its parent when it could not execute: written to `report`, which closes on exec.
struct Failure
{
    int error_number = 0;
    int stage = 0; ///< index into stage_name
};
const char* stage_name(int stage);

/// In the child, after fork: never returns.
[[noreturn]] void execute(const Prepared& prepared, const Spec& spec, pid_t parent, int report, bool session);

/// Blocks all signals while alive, so that no handler of ours runs in a child between fork and exec.
class SignalsBlocked
{
  public:
    SignalsBlocked();
    SignalsBlocked(const SignalsBlocked&) = delete;
    SignalsBlocked& operator=(const SignalsBlocked&) = delete;
    ~SignalsBlocked();

  private:
    struct Saved;
    std::unique_ptr<Saved> saved_;
};

struct Pipe
{
    Fd read, write;
};
Result<Pipe> make_pipe();

/// Reads the whole report: nothing when exec succeeded.
std::optional<Failure> read_failure(int fd);
Error failure_error(const Prepared& prepared, const Spec& spec, Failure failure);

Result<Fd> open_pidfd(pid_t pid);
Result<Done> signal_pidfd(int pidfd, int signal);

} // namespace dstack::process::detail
