#pragma once
#include "bus/broker/identity.hpp"
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace dstack::bus
{

/// A command on its way. Pure bookkeeping: no socket, no clock of its own.
struct Call
{
    std::uint64_t delivery = 0;
    std::string caller_route; ///< ZeroMQ routing id to answer to
    std::string charged_route{}; ///< the one whose quota it counts on: the asker may come back on another connection
    std::string correlation;
    std::string command;
    std::string service;
    std::uint64_t deadline_ms = 0; ///< unix time
    std::string key;               ///< idempotency key, may be empty
    std::string scope;             ///< whose key it is
    std::string request_hash;      ///< of command and body, when there is a key
    std::string traceparent;
    std::string caller;
    Identity identity{}; ///< of the caller
    std::string body;
    bool delivered = false;
    std::uint64_t received_us = 0;  ///< steady clock
    std::uint64_t delivered_us = 0; ///< the last time; 0: never
};

/// The calls that have no result yet, bounded per caller and in all.
class Calls
{
  public:
    static constexpr std::size_t max_per_route = 256;
    static constexpr std::size_t max_total = 20'000;
    static constexpr std::size_t max_bytes_per_route = 16u << 20; ///< of their bodies
    static constexpr std::size_t max_bytes = 128u << 20;

    /// resource_exhausted when the caller or the broker has too many in flight. Gives the call its delivery number.
    Result<std::uint64_t> add(Call call);
    Result<Done> room_for(const Call& call) const;
    Call* find(std::uint64_t delivery);
    /// A call in flight with the same key of the same caller: the new one waits for the same result.
    Call* find_key(const std::string& scope, const std::string& key);
    std::optional<Call> take(std::uint64_t delivery);
    /// Undelivered ones of a service, oldest first.
    std::vector<std::uint64_t> waiting_for(const std::string& service) const;
    std::vector<std::uint64_t> all_of(const std::string& service) const;
    std::vector<std::uint64_t> expired(std::uint64_t now_ms) const;
    /// 0 when there is none.
    std::uint64_t next_deadline() const;
    std::size_t size() const { return calls_.size(); }
    std::size_t in_flight(const std::string& route) const
    {
        const auto found = per_route_.find(route);
        return found == per_route_.end() ? 0 : found->second.calls;
    }

  private:
    std::map<std::uint64_t, Call> calls_;
    std::multimap<std::uint64_t, std::uint64_t> deadlines_;
    struct Held
    {
        std::size_t calls = 0;
        std::size_t bytes = 0;
    };
    std::unordered_map<std::string, Held> per_route_;
    std::size_t bytes_ = 0;
    std::unordered_map<std::string, std::uint64_t> keys_;
    std::uint64_t next_ = 1;
};

} // namespace dstack::bus
