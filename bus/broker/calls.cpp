#include "bus/broker/calls.hpp"
#include "bus/broker/quota.hpp"

namespace dstack::bus
{

namespace
{
std::string key_of(const std::string& scope, const std::string& key) { return scope + '\0' + key; }
} // namespace

Result<Done> Calls::room_for(const Call& call) const
{
    const std::size_t bytes = call.body.size();
    if (calls_.size() >= max_total) { return quota_error("calls_in_flight", calls_.size(), max_total, true, "try again later"); }
    if (bytes_ != 0 && bytes_ + bytes > max_bytes) { return quota_error("call_bytes_in_flight", bytes_, max_bytes, true, "try again later"); }
    const auto found = per_route_.find(call.caller_route);
    if (found == per_route_.end()) { return Done{}; }
    const Held& held = found->second;
    constexpr std::string_view next = "wait for results before sending more";
    if (held.calls >= max_per_route) { return quota_error("calls_in_flight", held.calls, max_per_route, false, next); }
    if (held.bytes + bytes > max_bytes_per_route) { return quota_error("call_bytes_in_flight", held.bytes, max_bytes_per_route, false, next); }
    return Done{};
}

Result<std::uint64_t> Calls::add(Call call)
{
    auto room = room_for(call);
    if (!room) { return std::move(room).error(); }
    Held& held = per_route_[call.caller_route];
    ++held.calls;
    held.bytes += call.body.size();
    bytes_ += call.body.size();
    call.charged_route = call.caller_route;
    call.delivery = next_++;
    deadlines_.emplace(call.deadline_ms, call.delivery);
    if (!call.key.empty()) { keys_[key_of(call.scope, call.key)] = call.delivery; }
    const std::uint64_t delivery = call.delivery;
    calls_.emplace(delivery, std::move(call));
    return delivery;
}

Call* Calls::find(std::uint64_t delivery)
{
    const auto found = calls_.find(delivery);
    return found == calls_.end() ? nullptr : &found->second;
}

Call* Calls::find_key(const std::string& scope, const std::string& key)
{
    const auto found = keys_.find(key_of(scope, key));
    return found == keys_.end() ? nullptr : find(found->second);
}

std::optional<Call> Calls::take(std::uint64_t delivery)
{
    const auto found = calls_.find(delivery);
    if (found == calls_.end()) { return std::nullopt; }
    Call call = std::move(found->second);
    calls_.erase(found);
    const auto [from, to] = deadlines_.equal_range(call.deadline_ms);
    for (auto it = from; it != to; ++it)
    {
        if (it->second == delivery)
        {
            deadlines_.erase(it);
            break;
        }
    }
    if (!call.key.empty()) { keys_.erase(key_of(call.scope, call.key)); }
    const auto mine = per_route_.find(call.charged_route);
    bytes_ -= call.body.size();
    if (mine != per_route_.end())
    {
        mine->second.bytes -= call.body.size();
        if (--mine->second.calls == 0) { per_route_.erase(mine); }
    }
    return call;
}

std::vector<std::uint64_t> Calls::waiting_for(const std::string& service) const
{
    std::vector<std::uint64_t> out;
    for (const auto& [delivery, call] : calls_)
    {
        if (call.service == service && !call.delivered) { out.push_back(delivery); }
    }
    return out;
}

std::vector<std::uint64_t> Calls::all_of(const std::string& service) const
{
    std::vector<std::uint64_t> out;
    for (const auto& [delivery, call] : calls_)
    {
        if (call.service == service) { out.push_back(delivery); }
    }
    return out;
}

std::vector<std::uint64_t> Calls::expired(std::uint64_t now_ms) const
{
    std::vector<std::uint64_t> out;
    for (auto it = deadlines_.begin(); it != deadlines_.end() && it->first <= now_ms; ++it) { out.push_back(it->second); }
    return out;
}

std::uint64_t Calls::next_deadline() const { return deadlines_.empty() ? 0 : deadlines_.begin()->first; }

} // namespace dstack::bus
