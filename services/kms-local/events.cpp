#include "services/kms-local/events.hpp"
#include "shared/log/log.hpp"

namespace dstack::kms
{

namespace
{
constexpr std::size_t max_waiting = 1024;
constexpr milliseconds attempt{60'000};
constexpr milliseconds pause{500};
} // namespace

EventQueue::EventQueue(Loop& loop, std::string bus_directory, std::string service)
    : loop_(loop), on_bus_(!bus_directory.empty()), client_(loop, {std::move(bus_directory), std::move(service)}),
      wake_(loop), empty_(loop), scope_(loop)
{
    empty_.set();
    if (on_bus_) { scope_.spawn(run()); }
}

void EventQueue::push(bus::Client::OutgoingEvent event)
{
    if (!on_bus_) { return; }
    if (waiting_.size() == max_waiting)
    {
        log::error("event dropped",
                   {{"type", waiting_.front().type}, {"subject", waiting_.front().subject}, {"waiting", max_waiting}});
        waiting_.pop_front();
    }
    waiting_.push_back(std::move(event));
    empty_.reset();
    wake_.set();
}

Task<> EventQueue::run()
{
    for (;;)
    {
        auto connected = co_await client_.connect(attempt);
        if (connected) { break; }
        log::warn("bus not reached", {{"error", connected.error().message}});
        co_await sleep_for(loop_, pause);
    }
    for (;;)
    {
        if (waiting_.empty())
        {
            empty_.set();
            wake_.reset();
            co_await wake_.wait();
            continue;
        }
        bus::Client::OutgoingEvent event = waiting_.front();
        auto published = co_await client_.publish_raw(std::move(event), attempt);
        if (!published)
        {
            const auto code = published.error().code;
            log::warn("event not published", {{"type", waiting_.front().type}, {"error", published.error().message}});
            const bool passing =
                code == Errc::unavailable || code == Errc::deadline_exceeded || code == Errc::resource_exhausted;
            if (passing)
            {
                co_await sleep_for(loop_, pause);
                continue;
            }
        }
        if (!waiting_.empty()) { waiting_.pop_front(); }
    }
}

Task<Result<Done>> EventQueue::emptied()
{
    co_await empty_.wait();
    co_return Done{};
}

Task<> EventQueue::drain(milliseconds limit)
{
    if (!on_bus_) { co_return; }
    auto wait = emptied();
    std::string what = "drain events";
    auto done = co_await with_timeout(loop_, limit, std::move(what), std::move(wait));
    if (!done) { log::warn("events left unpublished", {{"count", waiting_.size()}}); }
    scope_.cancel();
    co_await client_.disconnect(limit);
}

} // namespace dstack::kms
