#include "shared/process/fd_ready.hpp"
#include "shared/process/launch.hpp"
#include <array>
#include <cerrno>
#include <csignal>
#include <poll.h>
#include <sys/wait.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

namespace dstack::process
{

namespace
{
struct Stream
{
    Fd fd;
    std::string kept;
    std::size_t limit = 0;
    bool truncated = false;

    /// Takes what is there; false at the end of the stream.
    bool take()
    {
        std::array<char, 16 * 1024> buffer{};
        for (int turns = 0; turns < 16; ++turns) // a chatty child must not keep the loop
        {
            const ssize_t n = read(fd.get(), buffer.data(), buffer.size());
            if (n == 0) { return false; }
            if (n < 0) { return errno == EAGAIN || errno == EINTR; }
            const auto got = static_cast<std::size_t>(n);
            const std::size_t room = limit - kept.size();
            kept.append(buffer.data(), std::min(got, room));
            truncated = truncated || got > room;
        }
        return true;
    }
};

Result<Exit> reap(int pidfd)
{
    siginfo_t info{};
    if (waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(pidfd), &info, WEXITED | WNOHANG) != 0)
    {
        return errno_error("wait for child", errno);
    }
    if (info.si_pid == 0) { return Error{Errc::unavailable, "wait for child: still running"}; }
    if (info.si_code == CLD_EXITED) { return Exit{info.si_status, 0}; }
    return Exit{0, info.si_status};
}

/// For a thread that may wait. libuv made the pidfd non-blocking, and waitid honours that: poll does the waiting.
void wait_and_reap(int pidfd)
{
    pollfd exited{pidfd, POLLIN, 0};
    while (poll(&exited, 1, -1) < 0 && errno == EINTR) {}
    (void)reap(pidfd);
}
} // namespace

struct Child::Impl
{
    Impl(Loop& l, pid_t p, Fd fd, bool g) : loop(l), pid(p), pidfd(std::move(fd)), group(g), ended(l, pidfd.get()) {}
    Impl(const Impl&) = delete;
    Impl& operator=(const Impl&) = delete;
    ~Impl()
    {
        if (exit) { return; }
        if (group) { ::kill(-pid, SIGKILL); } // not reaped yet: neither the pid nor the group can be recycled
        (void)detail::signal_pidfd(pidfd.get(), SIGKILL);
        // It ends within milliseconds, but not at once: a pool thread reaps it, nobody waits for that.
        auto job = std::make_shared<dstack::detail::Job>();
        job->work = [fd = std::make_shared<Fd>(std::move(pidfd))] { wait_and_reap(fd->get()); };
        dstack::detail::start_job(loop, std::move(job));
    }

    static Task<> follow(Loop& loop, Stream& stream)
    {
        FdReady ready{loop, stream.fd.get()};
        bool more = static_cast<bool>(ready);
        while (more)
        {
            ready.arm();
            co_await ready.wait();
            more = stream.take();
        }
    }

    Loop& loop;
    pid_t pid;
    Fd pidfd;
    bool group;
    FdReady ended;
    Stream out, err;
    std::optional<Result<Exit>> exit;
    std::optional<Scope> readers;
};

Child::Child(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Child::Child(Child&&) noexcept = default;
Child::~Child() = default;
pid_t Child::pid() const { return impl_->pid; }
const std::string& Child::out() const { return impl_->out.kept; }
const std::string& Child::err() const { return impl_->err.kept; }
bool Child::truncated() const { return impl_->out.truncated || impl_->err.truncated; }

Result<Done> Child::kill(int signal)
{
    if (impl_->exit) { return Done{}; }
    if (impl_->group)
    {
        if (::kill(-impl_->pid, signal) == 0 || errno == ESRCH) { return Done{}; }
        return errno_error("send signal " + std::to_string(signal), errno);
    }
    return detail::signal_pidfd(impl_->pidfd.get(), signal);
}

Task<Result<Exit>> Child::wait()
{
    Impl& self = *impl_;
    co_await self.ended.wait();
    if (!self.exit)
    {
        self.exit = reap(self.pidfd.get());
        // A grandchild may hold the pipes open: take what the child left, do not wait for their end.
        self.readers.reset();
        for (Stream* stream : {&self.out, &self.err})
        {
            if (stream->fd) { stream->take(); }
        }
    }
    co_return *self.exit;
}

Result<Child> spawn(Loop& loop, const Spec& spec)
{
    auto prepared = detail::prepare(spec);
    if (!prepared) { return std::move(prepared).error(); }
    auto report = detail::make_pipe();
    if (!report) { return std::move(report).error(); }
    const pid_t self = getpid();
    pid_t pid = 0;
    int fork_error = 0;
    {
        const detail::SignalsBlocked blocked;
        pid = fork();
        fork_error = errno;
        if (pid == 0) { detail::execute(*prepared, spec, self, report->write.get(), spec.new_session); }
    }
    if (pid < 0) { return errno_error("run " + spec.argv[0], fork_error); }
    report->write.reset();
    const auto failure = detail::read_failure(report->read.get()); // ends at the exec
    if (failure)
    {
        while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {}
        return detail::failure_error(*prepared, spec, *failure);
    }
    auto pidfd = detail::open_pidfd(pid);
    if (!pidfd)
    {
        ::kill(pid, SIGKILL);
        while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {}
        return std::move(pidfd).error();
    }
    auto impl = std::make_unique<Child::Impl>(loop, pid, std::move(*pidfd), spec.new_session);
    if (!impl->ended) { return Error{Errc::internal, "run " + spec.argv[0] + ": cannot watch the child"}; }
    impl->ended.arm();
    impl->out.limit = impl->err.limit = spec.max_output;
    impl->out.fd = std::move(prepared->captured_out);
    impl->err.fd = std::move(prepared->captured_err);
    impl->readers.emplace(loop);
    for (Stream* stream : {&impl->out, &impl->err})
    {
        if (stream->fd) { impl->readers->spawn(Child::Impl::follow(loop, *stream)); }
    }
    return Child{std::move(impl)};
}

namespace
{
Task<Result<Output>> run_to_end(Loop& loop, Spec spec)
{
    auto child = spawn(loop, spec);
    if (!child) { co_return std::move(child).error(); }
    auto exit = co_await child->wait();
    if (!exit) { co_return std::move(exit).error(); }
    Output output{*exit, child->out(), child->err(), child->truncated()};
    co_return output;
}

std::string last_lines(std::string_view text, std::size_t limit)
{
    while (!text.empty() && text.back() == '\n') { text.remove_suffix(1); }
    if (text.size() > limit) { text.remove_prefix(text.size() - limit); }
    return std::string{text};
}
} // namespace

Task<Result<Output>> run(Loop& loop, Spec spec, milliseconds timeout)
{
    spec.out.kind = Sink::Kind::capture;
    spec.err.kind = Sink::Kind::capture;
    std::string what = spec.argv.empty() ? std::string{"run"} : "run " + spec.argv[0];
    auto task = run_to_end(loop, std::move(spec));
    auto bounded = with_timeout(loop, timeout, std::move(what), std::move(task));
    co_return co_await bounded;
}

Task<Result<Output>> run(Loop& loop, std::vector<std::string> argv, milliseconds timeout, std::size_t max_output)
{
    Spec spec;
    spec.argv = std::move(argv);
    spec.max_output = max_output;
    auto task = run(loop, std::move(spec), timeout);
    co_return co_await task;
}

Task<Result<Output>> output_of(Loop& loop, Spec spec, milliseconds timeout)
{
    const std::string what = spec.argv.empty() ? std::string{"run"} : "run " + spec.argv[0];
    auto task = run(loop, std::move(spec), timeout);
    auto output = co_await task;
    if (output && !output->exit.ok())
    {
        std::string message = what + ": " + to_string(output->exit);
        const std::string said = last_lines(output->err, 500);
        if (!said.empty()) { message += ": " + said; }
        co_return Error{Errc::internal, std::move(message), {}, {}};
    }
    co_return output;
}

std::string to_string(Exit exit)
{
    if (exit.signal != 0) { return "killed by signal " + std::to_string(exit.signal); }
    return "exit code " + std::to_string(exit.code);
}

} // namespace dstack::process
