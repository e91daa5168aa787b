#pragma once
#include "bus/broker/calls.hpp"
#include "bus/broker/identity.hpp"
#include "bus/schema/bus_stats.hpp"
#include <array>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>

namespace dstack::bus
{

/// What the broker counts of itself: bounded, and cheap enough for every message. No socket, no clock of its own.
class Stats
{
  public:
    static constexpr std::size_t max_peers = 1024;
    static constexpr std::size_t max_peers_told = 512;
    static constexpr std::uint64_t peer_kept_ms = 60'000; ///< clients of the library send something every 2 s
    /// Upper ends in ms; what took longer is in one more bucket without an end.
    static constexpr std::array<std::uint64_t, 10> bucket_ends{1, 2, 5, 10, 50, 100, 500, 1000, 5000, 30'000};

    explicit Stats(std::uint64_t now_ms) : started_ms_(now_ms) {}

    void received(const std::string& route, const Identity& identity, std::size_t bytes, std::uint64_t now_ms);
    void sent(const std::string& route, std::size_t bytes, bool taken);
    /// A page of the journal was given, `behind` events before the newest.
    void read(const std::string& route, std::uint64_t behind);
    void refused() { ++refused_; }
    void committed(std::size_t events, std::uint64_t took_us);
    void finished(const Call& call, std::string_view code, std::uint64_t now_us);
    /// Forgets connections that have been silent for long. Call now and then.
    void sweep(std::uint64_t now_ms);

    /// Everything that is counted here; what only the broker knows is left as it is.
    void fill(schema::BusStats::Reply& out) const;
    /// One of these for each service; counts only.
    schema::ServiceStats of_service(const std::string& service) const;
    /// The routes of `out.peers`, in that order, for who knows more about them.
    std::vector<std::string> fill_peers(schema::BusStats::Reply& out) const;

  private:
    struct Peer
    {
        schema::PeerStats counts;
        std::uint64_t since_ms = 0;
        std::uint64_t seen_ms = 0;
    };
    struct Service
    {
        std::map<std::string, std::uint64_t, std::less<>> results;
        std::array<std::uint64_t, bucket_ends.size() + 1> buckets{};
        std::uint64_t took_us = 0;
    };
    std::uint64_t started_ms_;
    std::unordered_map<std::string, Peer> peers_;
    std::map<std::string, Service, std::less<>> services_;
    std::uint64_t messages_in_ = 0;
    std::uint64_t messages_out_ = 0;
    std::uint64_t bytes_in_ = 0;
    std::uint64_t bytes_out_ = 0;
    std::uint64_t dropped_ = 0;
    std::uint64_t refused_ = 0;
    std::uint64_t reads_ = 0;
    std::uint64_t events_ = 0;
    std::uint64_t commits_ = 0;
    std::uint64_t commit_us_ = 0;
    std::uint64_t slowest_commit_us_ = 0;
};

/// Microseconds of a clock that never goes back.
std::uint64_t steady_us();
/// Processor time and memory of this process.
void fill_process(schema::BusStats::Reply& out);

/// The text that GET /metrics answers: OpenMetrics 1.0.
std::string open_metrics(const schema::BusStats::Reply& stats);

} // namespace dstack::bus
