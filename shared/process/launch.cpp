#include "shared/process/launch.hpp"
#include <array>
#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <linux/close_range.h>

namespace dstack::process::detail
{

namespace
{
constexpr std::string_view default_path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

enum Stage { stage_setup, stage_cwd, stage_exec };

Result<std::string> find_program(const std::string& name)
{
    if (name.find('/') != std::string::npos) { return name; }
    std::string_view directories = default_path.substr(5);
    while (!directories.empty())
    {
        const auto end = std::min(directories.find(':'), directories.size());
        std::string candidate = std::string{directories.substr(0, end)} + "/" + name;
        if (access(candidate.c_str(), X_OK) == 0) { return candidate; }
        directories.remove_prefix(std::min(end + 1, directories.size()));
    }
    return Error{Errc::not_found, "run " + name + ": no such program in " + std::string{default_path.substr(5)},
                 "install the package that provides " + name, {}};
}

/// Any size goes in without a writer that would have to be fed.
Result<Fd> input_file(const std::string& bytes)
{
    if (bytes.empty())
    {
        Fd fd{open("/dev/null", O_RDONLY | O_CLOEXEC)};
        if (!fd) { return errno_error("open /dev/null", errno); }
        return fd;
    }
    Fd fd{memfd_create("stdin", MFD_CLOEXEC)};
    if (!fd) { return errno_error("memfd for stdin", errno); }
    std::size_t written = 0;
    while (written < bytes.size())
    {
        const ssize_t n = write(fd.get(), bytes.data() + written, bytes.size() - written);
        if (n < 0 && errno == EINTR) { continue; }
        if (n < 0) { return errno_error("write stdin", errno); }
        written += static_cast<std::size_t>(n);
    }
    if (lseek(fd.get(), 0, SEEK_SET) != 0) { return errno_error("seek stdin", errno); }
    return fd;
}

Result<Fd> sink_file(const Sink& sink, int inherited, Fd& captured)
{
    switch (sink.kind)
    {
    case Sink::Kind::null:
    {
        Fd fd{open("/dev/null", O_WRONLY | O_CLOEXEC)};
        if (!fd) { return errno_error("open /dev/null", errno); }
        return fd;
    }
    case Sink::Kind::inherit:
    {
        Fd fd{fcntl(inherited, F_DUPFD_CLOEXEC, 3)};
        if (!fd) { return errno_error("inherit descriptor " + std::to_string(inherited), errno); }
        return fd;
    }
    case Sink::Kind::file:
    {
        Fd fd{open(sink.path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0600)};
        if (!fd) { return errno_error("open " + sink.path, errno); }
        return fd;
    }
    case Sink::Kind::capture:
    {
        auto pipe = make_pipe();
        if (!pipe) { return std::move(pipe).error(); }
        if (fcntl(pipe->read.get(), F_SETFL, O_NONBLOCK) != 0) { return errno_error("capture output", errno); }
        captured = std::move(pipe->read);
        return std::move(pipe->write);
    }
    }
    return Error{Errc::internal, "unknown sink"};
}

/// A descriptor 0..2 would be overwritten by the dup2 of another one.
Result<Done> move_up(Fd& fd)
{
    if (fd.get() > 2) { return Done{}; }
    Fd moved{fcntl(fd.get(), F_DUPFD_CLOEXEC, 3)};
    if (!moved) { return errno_error("move descriptor", errno); }
    fd = std::move(moved);
    return Done{};
}

std::vector<char*> pointers(const std::vector<std::string>& strings)
{
    std::vector<char*> out;
    out.reserve(strings.size() + 1);
    for (const auto& text : strings) { out.push_back(const_cast<char*>(text.c_str())); } // execve(2) does not write there
    out.push_back(nullptr);
    return out;
}

[[noreturn]] void give_up(int report, Stage stage)
{
    const Failure failure{errno, stage};
    [[maybe_unused]] const ssize_t n = write(report, &failure, sizeof failure);
    _exit(127);
}
} // namespace

struct SignalsBlocked::Saved
{
    sigset_t mask{};
};

SignalsBlocked::SignalsBlocked() : saved_(std::make_unique<Saved>())
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &saved_->mask);
}

SignalsBlocked::~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &saved_->mask, nullptr); }

Result<Pipe> make_pipe()
{
    std::array<int, 2> ends{};
    if (pipe2(ends.data(), O_CLOEXEC) != 0) { return errno_error("pipe", errno); }
    return Pipe{Fd{ends[0]}, Fd{ends[1]}};
}

Result<Prepared> prepare(const Spec& spec)
{
    if (spec.argv.empty() || spec.argv[0].empty()) { return Error{Errc::invalid_argument, "run: no program was named"}; }
    for (const auto* strings : {&spec.argv, &spec.env})
    {
        for (const auto& text : *strings)
        {
            if (text.find('\0') != std::string::npos)
            {
                return Error{Errc::invalid_argument, "run " + spec.argv[0] + ": an argument holds a zero byte"};
            }
        }
    }
    auto file = find_program(spec.argv[0]);
    if (!file) { return std::move(file).error(); }
    Prepared out;
    out.file = std::move(*file);
    out.env = spec.env;
    if (out.env.empty()) { out.env = {std::string{default_path}, "LANG=C.UTF-8"}; }
    auto in = input_file(spec.input);
    if (!in) { return std::move(in).error(); }
    out.in = std::move(*in);
    auto sink = sink_file(spec.out, STDOUT_FILENO, out.captured_out);
    if (!sink) { return std::move(sink).error(); }
    out.out = std::move(*sink);
    sink = sink_file(spec.err, STDERR_FILENO, out.captured_err);
    if (!sink) { return std::move(sink).error(); }
    out.err = std::move(*sink);
    for (Fd* fd : {&out.in, &out.out, &out.err})
    {
        const auto moved = move_up(*fd);
        if (!moved) { return moved.error(); }
    }
    out.argv_pointers = pointers(spec.argv);
    out.env_pointers = pointers(out.env); // the strings' buffers: keep the vector, do not copy its elements
    return out;
}

const char* stage_name(int stage)
{
    switch (stage)
    {
    case stage_cwd: return "change directory";
    case stage_exec: return "execute";
    default: return "set up";
    }
}

void execute(const Prepared& prepared, const Spec& spec, pid_t parent, int report, bool session)
{
    if (session && setsid() < 0) { give_up(report, stage_setup); }
    if (spec.parent_death_signal != 0)
    {
        if (prctl(PR_SET_PDEATHSIG, spec.parent_death_signal) != 0) { give_up(report, stage_setup); }
        if (getppid() != parent) { _exit(127); } // it died before we asked to be told
    }
    if (dup2(prepared.in.get(), 0) < 0 || dup2(prepared.out.get(), 1) < 0 || dup2(prepared.err.get(), 2) < 0)
    {
        give_up(report, stage_setup);
    }
    // Closed by the exec, so that the report can still be written.
    if (close_range(3, ~0U, CLOSE_RANGE_CLOEXEC) != 0) { give_up(report, stage_setup); }
    if (!spec.cwd.empty() && chdir(spec.cwd.c_str()) != 0) { give_up(report, stage_cwd); }
    struct sigaction standard{};
    standard.sa_handler = SIG_DFL;
    for (int signal = 1; signal < NSIG; ++signal) { sigaction(signal, &standard, nullptr); } // KILL and STOP refuse
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    execve(prepared.file.c_str(), prepared.argv_pointers.data(), prepared.env_pointers.data());
    give_up(report, stage_exec);
}

std::optional<Failure> read_failure(int fd)
{
    Failure failure;
    ssize_t n = 0;
    do { n = read(fd, &failure, sizeof failure); } while (n < 0 && errno == EINTR);
    if (n == static_cast<ssize_t>(sizeof failure)) { return failure; }
    return std::nullopt;
}

Error failure_error(const Prepared& prepared, const Spec& spec, Failure failure)
{
    std::string what = "run " + prepared.file + ": " + stage_name(failure.stage);
    if (failure.stage == stage_cwd) { what += " " + spec.cwd; }
    return errno_error(what, failure.error_number);
}

Result<Fd> open_pidfd(pid_t pid)
{
    Fd fd{static_cast<int>(syscall(SYS_pidfd_open, pid, 0))}; // close-on-exec by definition
    if (!fd) { return errno_error("watch process " + std::to_string(pid), errno); }
    return fd;
}

Result<Done> signal_pidfd(int pidfd, int signal)
{
    if (syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0) != 0 && errno != ESRCH)
    {
        return errno_error("send signal " + std::to_string(signal), errno);
    }
    return Done{};
}

} // namespace dstack::process::detail
