#include "shared/process/fd_ready.hpp"
#include "shared/process/launch.hpp"
#include <csignal>

namespace dstack::process
{

struct PidWatch::Impl
{
    Impl(Loop& loop, Identity identity, Fd fd) : who(std::move(identity)), pidfd(std::move(fd)), ended(loop, pidfd.get()) {}
    Identity who;
    Fd pidfd;
    FdReady ended; // a pidfd is readable when its process is a zombie or gone
};

PidWatch::PidWatch(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
PidWatch::PidWatch(PidWatch&&) noexcept = default;
PidWatch::~PidWatch() = default;
const Identity& PidWatch::who() const { return impl_->who; }
bool PidWatch::has_exited() const { return impl_->ended.is_set(); }
Result<Done> PidWatch::kill(int signal) { return detail::signal_pidfd(impl_->pidfd.get(), signal); }

Result<PidWatch> PidWatch::open(Loop& loop, Identity who)
{
    const auto gone = [&] { return Error{Errc::not_found, "process " + std::to_string(who.pid) + " has ended"}; };
    if (who.pid <= 0) { return gone(); }
    auto fd = detail::open_pidfd(who.pid);
    if (!fd)
    {
        if (fd.error().code == Errc::not_found || fd.error().code == Errc::invalid_argument) { return gone(); }
        return std::move(fd).error();
    }
    // After the open: if the descriptor got a successor of `who`, `who` is dead and nobody can have its start time.
    if (!alive(who)) { return gone(); }
    auto impl = std::make_unique<Impl>(loop, std::move(who), std::move(*fd));
    if (!impl->ended) { return Error{Errc::internal, "cannot watch process " + std::to_string(impl->who.pid)}; }
    impl->ended.arm();
    return PidWatch{std::move(impl)};
}

Task<> PidWatch::exited()
{
    co_await impl_->ended.wait();
}

namespace
{
Task<Result<Done>> until_exit(PidWatch& watch)
{
    co_await watch.exited();
    co_return Done{};
}
} // namespace

Task<Result<Terminated>> terminate(Loop& loop, Identity who, milliseconds grace)
{
    auto watch = PidWatch::open(loop, who);
    if (!watch)
    {
        if (watch.error().code == Errc::not_found) { co_return Terminated::already_gone; }
        co_return std::move(watch).error();
    }
    const std::string what = "process " + std::to_string(who.pid);
    if (grace.count() > 0)
    {
        const auto sent = watch->kill(SIGTERM);
        if (!sent) { co_return sent.error(); }
        auto waiting = until_exit(*watch);
        auto bounded = with_timeout(loop, grace, what, std::move(waiting));
        const auto ended = co_await bounded;
        if (ended) { co_return Terminated::by_request; }
    }
    const auto sent = watch->kill(SIGKILL);
    if (!sent) { co_return sent.error(); }
    auto waiting = until_exit(*watch);
    const milliseconds limit = grace.count() > 0 ? grace : milliseconds{5000};
    auto bounded = with_timeout(loop, limit, what, std::move(waiting));
    const auto ended = co_await bounded;
    if (!ended)
    {
        Error error = ended.error();
        error.message = what + ": did not end within " + std::to_string(limit.count()) + " ms after SIGKILL";
        co_return error;
    }
    co_return Terminated::by_force;
}

} // namespace dstack::process
