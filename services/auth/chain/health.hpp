#pragma once
#include "services/auth/chain/fault.hpp"
#include <cstdint>
#include <span>
#include <vector>

// When an endpoint may be asked again, and in which order. Pure: time and chance come as arguments.
namespace dstack::auth::chain
{

using Clock = std::chrono::steady_clock;

struct EndpointHealth
{
    unsigned failures = 0;         ///< in a row
    Clock::time_point rest_until{}; ///< not to be asked before, as long as there is a better one
    bool forbidden = false;        ///< it was the endpoint's own wish: not to be asked before at all
    std::optional<Failure> last{}; ///< of the newest failure; empty after a success
    Clock::time_point last_at{};   ///< of the newest answer or failure
    std::uint64_t answers = 0;
    std::uint64_t failed = 0;
};

void note_answer(EndpointHealth& health, Clock::time_point now);
/// Doubles the rest from 1 s up to 60 s, or takes what the endpoint asked for. `chance` in [0, 1) spreads it between
/// half and all of that, so that many hosts do not come back at the same moment.
void note_failure(EndpointHealth& health, Failure failure, Clock::time_point now, double chance);

bool resting(const EndpointHealth& health, Clock::time_point now);
/// May it be asked now, if need be?
bool askable(const EndpointHealth& health, Clock::time_point now);

/// Whom to ask, the best first: those that are well in their configured order, then those that rest without having
/// asked for it, the one that is due first first. Who asked for a rest is not in the list.
std::vector<std::size_t> order_of(std::span<const EndpointHealth> endpoints, Clock::time_point now);

/// "rpc_rate_limited (HTTP 429), asked again in 12 s": why it is not, or may not be, asked.
std::string describe(const EndpointHealth& health, Clock::time_point now);

} // namespace dstack::auth::chain
