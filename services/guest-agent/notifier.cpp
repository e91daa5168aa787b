#include "services/guest-agent/notifier.hpp"
#include "services/guest-agent/notify_body.hpp"
#include "shared/log/log.hpp"

namespace dstack::guest
{

Notifier::Notifier(Loop& loop, std::string host_api_url)
    : loop_(loop), client_(loop), url_(std::move(host_api_url)), filled_(loop), idle_(loop), scope_(loop)
{
    idle_.set();
    if (!url_.empty()) { scope_.spawn(deliver()); }
}

void Notifier::push(std::string event, std::string payload)
{
    if (url_.empty()) { return; }
    if (queue_.size() >= max_queue)
    {
        log::warn("report to host dropped", {{"event", event}});
        return;
    }
    queue_.push_back(notify_body(event, payload));
    idle_.reset();
    filled_.set();
}

Task<> Notifier::deliver()
{
    for (;;)
    {
        co_await filled_.wait();
        while (!queue_.empty())
        {
            std::string body = std::move(queue_.front());
            queue_.pop_front();
            co_await send(std::move(body));
        }
        filled_.reset();
        idle_.set();
    }
}

Task<> Notifier::send(std::string body)
{
    for (int attempt = 1; attempt <= 3; ++attempt)
    {
        http::ClientRequest request;
        request.method = "POST";
        request.url = url_ + "/Notify?json";
        request.headers.add("Content-Type", "application/json");
        request.body = body;
        request.timeout = milliseconds{10'000};
        auto response = co_await client_.send(std::move(request));
        if (response && response->status == 200) { co_return; }
        if (response)
        {
            log::warn("report to host refused", {{"status", response->status}, {"reason", rpc_error(response->body)}});
            co_return;
        }
        log::warn("report to host failed", {{"attempt", attempt}, {"error", response.error().message}});
        const milliseconds pause{200 * attempt};
        co_await sleep_for(loop_, pause);
    }
}

Task<Result<Done>> Notifier::wait_idle()
{
    co_await idle_.wait();
    co_return Done{};
}

Task<> Notifier::flush(milliseconds limit)
{
    auto waiting = wait_idle();
    const std::string what{"host api"};
    auto told = co_await with_timeout(loop_, limit, what, std::move(waiting));
    if (!told) { log::warn("host was not told everything", {{"error", told.error().message}}); }
}

} // namespace dstack::guest
