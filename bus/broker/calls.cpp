#include "bus/broker/calls.hpp"

namespace dstack::bus
{

namespace
{
std::string key_of(const std::string& scope, const std::string& key) { return scope + '\0' + key; }
} // namespace

Result<std::uint64_t> Calls::add(Call call)
{
    if (calls_.size() >= max_total)
    {
        return Error{Errc::resource_exhausted, "the broker has " + std::to_string(max_total) + " commands in flight", "try again later", {}};
    }
    std::size_t& mine = per_route_[call.caller_route];
    if (mine >= max_per_route)
    {
        return Error{Errc::resource_exhausted, "you have " + std::to_string(max_per_route) + " commands in flight",
                     "wait for results before sending more", {}};
    }
    ++mine;
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
    const auto mine = per_route_.find(call.caller_route);
    if (mine != per_route_.end() && --mine->second == 0) { per_route_.erase(mine); }
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
