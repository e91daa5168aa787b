#include "bus/broker/quota.hpp"

namespace dstack::bus
{

Error quota_error(std::string_view quota, std::uint64_t used, std::uint64_t limit, bool of_broker, std::string_view next_step)
{
    const std::string name{quota};
    return Error{Errc::resource_exhausted,
                 "quota " + name + ": " + (of_broker ? "the broker has " : "you have ") + std::to_string(used) + " of at most " + std::to_string(limit),
                 std::string{next_step},
                 "{\"quota\":\"" + name + "\",\"used\":" + std::to_string(used) + ",\"limit\":" + std::to_string(limit) +
                     ",\"scope\":\"" + (of_broker ? "broker" : "connection") + "\"}"};
}

void Waiting::add(std::size_t count)
{
    bytes.fetch_add(count, std::memory_order_relaxed);
    if (all) { all->add(count); }
}

void Waiting::remove(std::size_t count)
{
    bytes.fetch_sub(count, std::memory_order_relaxed);
    if (all) { all->remove(count); }
}

bool Quotas::Peer::idle() const
{
    return events == 0 && reads == 0 && malformed == 0 && (!waiting || (waiting.use_count() == 1 && waiting->bytes.load(std::memory_order_relaxed) == 0));
}

void Quotas::drop_if_idle(const std::string& route)
{
    const auto found = peers_.find(route);
    // An account is kept until the sweep: a peer that reads page after page would make one for each.
    if (found != peers_.end() && !found->second.waiting && found->second.idle()) { peers_.erase(found); }
}

Result<Done> Quotas::begin_event(const std::string& route, std::size_t bytes)
{
    constexpr std::string_view next = "wait for acknowledgements before publishing more";
    Peer& peer = peers_[route];
    if (peer.waiting && peer.waiting->bytes.load(std::memory_order_relaxed) > limits_.waiting_bytes)
    {
        return quota_error("bytes_waiting", peer.waiting->bytes.load(std::memory_order_relaxed), limits_.waiting_bytes, false, "read the answers that are on their way to you");
    }
    if (peer.events >= limits_.events) { return quota_error("events_in_flight", peer.events, limits_.events, false, next); }
    if (peer.events != 0 && peer.event_bytes + bytes > limits_.event_bytes)
    {
        return quota_error("event_bytes_in_flight", peer.event_bytes, limits_.event_bytes, false, next);
    }
    if (event_bytes_ != 0 && event_bytes_ + bytes > limits_.all_event_bytes)
    {
        drop_if_idle(route);
        return quota_error("event_bytes_in_flight", event_bytes_, limits_.all_event_bytes, true, "try again later");
    }
    ++peer.events;
    peer.event_bytes += bytes;
    event_bytes_ += bytes;
    return Done{};
}

void Quotas::end_event(const std::string& route, std::size_t bytes)
{
    const auto found = peers_.find(route);
    if (found == peers_.end() || found->second.events == 0) { return; }
    --found->second.events;
    found->second.event_bytes -= bytes;
    event_bytes_ -= bytes;
    drop_if_idle(route);
}

Result<Done> Quotas::may_ask(const std::string& route)
{
    constexpr std::string_view next = "read the answers that are on their way to you";
    const auto found = peers_.find(route);
    if (found == peers_.end() || !found->second.waiting) { return Done{}; }
    const std::size_t mine = found->second.waiting->bytes.load(std::memory_order_relaxed);
    if (mine > limits_.waiting_bytes) { return quota_error("bytes_waiting", mine, limits_.waiting_bytes, false, next); }
    // The broker as a whole is short of room: whoever has something waiting takes that first, the others go on.
    const std::size_t all = waiting_bytes();
    if (all > limits_.all_waiting_bytes && mine > limits_.waiting_bytes / 16) { return quota_error("bytes_waiting", all, limits_.all_waiting_bytes, true, next); }
    return Done{};
}

Result<Done> Quotas::begin_read(const std::string& route)
{
    auto room = may_ask(route);
    if (!room) { return room; }
    if (reads_ >= limits_.all_reads) { return quota_error("reads_in_flight", reads_, limits_.all_reads, true, "try again later"); }
    Peer& peer = peers_[route];
    if (peer.reads >= limits_.reads) { return quota_error("reads_in_flight", peer.reads, limits_.reads, false, "wait for the pages that you asked for"); }
    ++peer.reads;
    ++reads_;
    return Done{};
}

void Quotas::end_read(const std::string& route)
{
    const auto found = peers_.find(route);
    if (found == peers_.end() || found->second.reads == 0) { return; }
    --found->second.reads;
    --reads_;
    drop_if_idle(route);
}

std::shared_ptr<Waiting> Quotas::waiting(const std::string& route)
{
    Peer& peer = peers_[route];
    if (!peer.waiting)
    {
        peer.waiting = std::make_shared<Waiting>();
        peer.waiting->all = all_waiting_;
    }
    return peer.waiting;
}

bool Quotas::malformed(const std::string& route, std::uint64_t now_ms)
{
    Peer& peer = peers_[route];
    peer.malformed_ms = now_ms;
    return ++peer.malformed == limits_.malformed;
}

bool Quotas::ignored(const std::string& route) const
{
    if (peers_.empty()) { return false; }
    const auto found = peers_.find(route);
    return found != peers_.end() && found->second.malformed >= limits_.malformed;
}

bool Quotas::end_now(const std::string& route) { return ignored(route) && !std::exchange(peers_[route].ended, true); }

void Quotas::sweep(std::uint64_t now_ms)
{
    for (auto it = peers_.begin(); it != peers_.end();)
    {
        Peer& peer = it->second;
        if (peer.malformed != 0 && now_ms > peer.malformed_ms + limits_.malformed_memory_ms)
        {
            peer.malformed = 0;
            peer.ended = false;
        }
        if (peer.idle()) { it = peers_.erase(it); }
        else { ++it; }
    }
}

bool RefusalLimiter::admit(std::string_view kind, std::uint64_t now_ms, std::uint64_t& suppressed)
{
    const auto found = kinds_.find(kind);
    if (found == kinds_.end())
    {
        kinds_.emplace(std::string{kind}, Kind{now_ms, 0});
        suppressed = 0;
        return true;
    }
    Kind& entry = found->second;
    if (now_ms - entry.said_ms < interval_ms_)
    {
        ++entry.suppressed;
        return false;
    }
    entry.said_ms = now_ms;
    suppressed = std::exchange(entry.suppressed, 0);
    return true;
}

std::map<std::string, std::uint64_t> RefusalLimiter::overdue(std::uint64_t now_ms)
{
    std::map<std::string, std::uint64_t> out;
    for (auto& [kind, entry] : kinds_)
    {
        if (entry.suppressed == 0 || now_ms - entry.said_ms < interval_ms_) { continue; }
        entry.said_ms = now_ms;
        out[kind] = std::exchange(entry.suppressed, 0);
    }
    return out;
}

} // namespace dstack::bus
