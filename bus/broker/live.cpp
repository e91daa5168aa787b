#include "bus/broker/live.hpp"
#include <algorithm>

namespace dstack::bus
{

namespace
{
constexpr std::size_t subscribers_per_ms = 20; ///< a core writes to some 200 sockets in a millisecond: this leaves it most of its time
constexpr std::size_t longest_pause_ms = 10;
constexpr std::size_t most_waiting = 1000;
constexpr int subscriptions_per_turn = 256;
} // namespace

LiveStream::LiveStream(Loop& loop, zmq::socket_t& socket)
    : loop_(loop), socket_(socket), timer_(make_uv<uv_timer_t>([&](uv_timer_t* h) { return uv_timer_init(loop.raw(), h); }))
{
    timer_->data = this;
}

milliseconds LiveStream::pause(std::size_t subscribers)
{
    return milliseconds{std::min(subscribers / subscribers_per_ms, longest_pause_ms)};
}

void LiveStream::add(const JournalEntry& event)
{
    zmq::message_t message = wire::line({std::string{wire::event_topic}.append(event.type), std::to_string(event.sequence), event.envelope});
    const auto apart = static_cast<std::uint64_t>(pause(subscribers_).count());
    if (apart == 0 && waiting_.empty())
    {
        socket_.send(message, zmq::send_flags::dontwait);
        return;
    }
    waiting_.push_back(std::move(message));
    const std::uint64_t now = uv_now(loop_.raw());
    if (now >= flushed_ms_ + apart || waiting_.size() >= most_waiting) { flush(); }
    else if (uv_is_active(reinterpret_cast<uv_handle_t*>(timer_.get())) == 0)
    {
        uv_timer_start(
            timer_.get(), [](uv_timer_t* h) { static_cast<LiveStream*>(h->data)->flush(); }, flushed_ms_ + apart - now, 0);
    }
}

void LiveStream::flush()
{
    uv_timer_stop(timer_.get());
    flushed_ms_ = uv_now(loop_.raw());
    for (zmq::message_t& message : waiting_) { socket_.send(message, zmq::send_flags::dontwait); }
    waiting_.clear();
}

void LiveStream::head(std::uint64_t last, std::uint64_t epoch)
{
    flush(); // a head beyond what came would send subscribers to the journal
    zmq::message_t message = wire::line({wire::head_topic, std::to_string(last), std::to_string(epoch)});
    socket_.send(message, zmq::send_flags::dontwait);
}

bool LiveStream::take_subscriptions(const std::function<void(zmq::message_t&)>& each)
{
    wire::Frames frames;
    bool any = false;
    for (int i = 0; i < subscriptions_per_turn && wire::receive(socket_, frames); ++i)
    {
        // 1 or 0, then the topic. Each subscription to events counts as a subscriber: it only makes the pause longer.
        const std::string_view said = frames.empty() ? std::string_view{} : wire::text(frames[0]);
        if (said.empty()) { continue; }
        each(frames[0]);
        if (said[0] != 0 && said[0] != 1) { continue; } // a subscriber may send anything
        any = any || said[0] == 1;
        if (said.substr(1) == wire::head_topic) { continue; }
        if (said[0] == 1) { ++subscribers_; }
        else if (subscribers_ > 0) { --subscribers_; }
    }
    return any;
}

} // namespace dstack::bus
