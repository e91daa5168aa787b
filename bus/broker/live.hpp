#pragma once
#include "bus/protocol/frames.hpp"
#include "bus/broker/journal.hpp"
#include "shared/runtime/loop.hpp"
#include <functional>
#include <vector>

namespace dstack::bus
{

/// Tells durable events to those who subscribed on the XPUB socket. With many subscribers it tells several at once: a message costs
/// one system call per subscriber, several at once cost hardly more.
class LiveStream
{
  public:
    /// The socket must outlive it.
    LiveStream(Loop& loop, zmq::socket_t& socket);
    LiveStream(const LiveStream&) = delete;
    LiveStream& operator=(const LiveStream&) = delete;

    void add(const JournalEntry& event);
    void head(std::uint64_t last, std::uint64_t epoch);
    /// Takes what subscribers said, and shows each message to `each`. True: somebody is new.
    bool take_subscriptions(const std::function<void(zmq::message_t&)>& each);
    std::size_t subscribers() const { return subscribers_; }

    /// Between two rounds of telling; zero for few subscribers.
    static milliseconds pause(std::size_t subscribers);

  private:
    void flush();

    Loop& loop_;
    zmq::socket_t& socket_;
    UvHandle<uv_timer_t> timer_;
    std::vector<zmq::message_t> waiting_;
    std::uint64_t flushed_ms_ = 0; ///< of the loop's clock
    std::size_t subscribers_ = 0;
};

} // namespace dstack::bus
