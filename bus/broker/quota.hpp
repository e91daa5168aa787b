#pragma once
#include "shared/base/result.hpp"
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>

namespace dstack::bus
{

/// What one connection, and the broker as a whole, may hold. Beyond: resource_exhausted, which names the quota.
struct QuotaLimits
{
    std::size_t events = 4096;                       ///< published and not yet durable, per connection
    std::size_t event_bytes = 16u << 20;             ///< their bytes
    std::size_t all_event_bytes = 128u << 20;        ///< of all connections
    std::size_t reads = 16;                          ///< `read`s without an answer, per connection
    std::size_t all_reads = 256;
    std::size_t waiting_bytes = 32u << 20;           ///< answers that the peer does not take, per connection
    std::size_t all_waiting_bytes = 256u << 20;
    std::size_t subscriptions = 256;                 ///< made on one connection to the events socket
    std::size_t malformed = 32;                      ///< messages that are none, until the connection is ignored
    std::uint64_t malformed_memory_ms = 60'000;      ///< how long after the last one they count
};

/// Bytes of answers that ZeroMQ still holds for one peer. Counted down on ZeroMQ's own thread when it has let them go.
struct Waiting
{
    std::atomic<std::size_t> bytes{0};
    std::shared_ptr<Waiting> all; ///< of the broker as a whole
    void add(std::size_t count);
    void remove(std::size_t count);
};

/// Who holds how much. Pure bookkeeping: no socket. A connection is known by its routing id; one that holds nothing
/// costs nothing.
class Quotas
{
  public:
    explicit Quotas(QuotaLimits limits = {}) : limits_(limits), all_waiting_(std::make_shared<Waiting>()) {}

    Result<Done> begin_event(const std::string& route, std::size_t bytes);
    void end_event(const std::string& route, std::size_t bytes);
    Result<Done> begin_read(const std::string& route);
    void end_read(const std::string& route);
    /// May this connection ask for something that has a large answer?
    Result<Done> may_ask(const std::string& route);
    /// The account of what is sent to this connection.
    std::shared_ptr<Waiting> waiting(const std::string& route);

    /// Counts a message that is none. True: that was the last one that is answered, the connection is ignored from now on.
    bool malformed(const std::string& route, std::uint64_t now_ms);
    bool ignored(const std::string& route) const;
    /// Is it now that an ignored connection is to be ended? Once: more of its messages may come behind, when its descriptor is
    /// another connection's already.
    bool end_now(const std::string& route);

    /// Forgets connections that hold nothing, and malformed messages after a while. Call now and then.
    void sweep(std::uint64_t now_ms);
    std::size_t connections() const { return peers_.size(); }
    std::size_t reads() const { return reads_; }
    std::size_t events_of(const std::string& route) const
    {
        const auto found = peers_.find(route);
        return found == peers_.end() ? 0 : found->second.events;
    }
    std::size_t waiting_bytes() const { return all_waiting_->bytes.load(std::memory_order_relaxed); }
    const QuotaLimits& limits() const { return limits_; }

  private:
    struct Peer
    {
        std::size_t events = 0;
        std::size_t event_bytes = 0;
        std::size_t reads = 0;
        std::size_t malformed = 0;
        std::uint64_t malformed_ms = 0; ///< the last one
        bool ended = false;
        std::shared_ptr<Waiting> waiting{};
        bool idle() const;
    };
    void drop_if_idle(const std::string& route);

    QuotaLimits limits_;
    std::shared_ptr<Waiting> all_waiting_;
    std::unordered_map<std::string, Peer> peers_;
    std::size_t event_bytes_ = 0;
    std::size_t reads_ = 0;
};

/// resource_exhausted: "quota reads_in_flight: you have 16 of at most 16", with the numbers as details.
Error quota_error(std::string_view quota, std::uint64_t used, std::uint64_t limit, bool of_broker, std::string_view next_step);

/// At most one refusal of a kind per interval is said; the others are counted, and the count is said with the next one or
/// when nothing more comes.
class RefusalLimiter
{
  public:
    explicit RefusalLimiter(std::uint64_t interval_ms = 1000) : interval_ms_(interval_ms) {}
    /// Say this one? Then `suppressed` is how many were not said before it.
    bool admit(std::string_view kind, std::uint64_t now_ms, std::uint64_t& suppressed);
    /// Kinds whose suppressed ones wait for an interval already, with their count, which is taken.
    std::map<std::string, std::uint64_t> overdue(std::uint64_t now_ms);

  private:
    struct Kind
    {
        std::uint64_t said_ms = 0;
        std::uint64_t suppressed = 0;
    };
    std::uint64_t interval_ms_;
    std::map<std::string, Kind, std::less<>> kinds_;
};

} // namespace dstack::bus
