#include "services/auth/chain/health.hpp"
#include <algorithm>

namespace dstack::auth::chain
{

namespace
{

using std::chrono::milliseconds;

constexpr milliseconds first_rest{1000};
constexpr milliseconds longest_rest{60'000};

/// Is the failure about the endpoint, and not about one answer of it? A hostile contract can make answers too large or
/// malformed: that must not take an endpoint away from the questions of others.
bool tires(Fault fault)
{
    switch (fault)
    {
    case Fault::rate_limited:
    case Fault::server_error:
    case Fault::refused:
    case Fault::redirected:
    case Fault::unreachable:
    case Fault::tls:
    case Fault::timeout:
    case Fault::slow:
    case Fault::stale:
    case Fault::wrong_chain:
        return true;
    case Fault::too_large:
    case Fault::malformed:
    case Fault::rpc_error:
    case Fault::no_contract:
        return false;
    }
    return true;
}

milliseconds rest_after(unsigned failures)
{
    milliseconds rest = first_rest;
    for (unsigned i = 1; i < failures && rest < longest_rest; ++i) { rest *= 2; }
    return std::min(rest, longest_rest);
}

} // namespace

void note_answer(EndpointHealth& health, Clock::time_point now)
{
    health.failures = 0;
    health.rest_until = {};
    health.forbidden = false;
    health.last.reset();
    health.last_at = now;
    ++health.answers;
}

void note_failure(EndpointHealth& health, Failure failure, Clock::time_point now, double chance)
{
    ++health.failed;
    health.last_at = now;
    if (tires(failure.fault))
    {
        ++health.failures;
        const milliseconds whole = rest_after(health.failures);
        milliseconds rest = whole / 2 + milliseconds{static_cast<std::int64_t>(static_cast<double>(whole.count() / 2) * chance)};
        if (failure.retry_after) { rest = std::max(rest, milliseconds{*failure.retry_after}); }
        // An answer that was on its way when another one asked for a rest does not shorten that.
        const bool asked = failure.fault == Fault::rate_limited || failure.retry_after.has_value();
        const bool still = health.forbidden && resting(health, now);
        if (asked || !still)
        {
            health.forbidden = asked || still;
            health.rest_until = still ? std::max(health.rest_until, now + rest) : now + rest;
        }
    }
    health.last = std::move(failure);
}

bool resting(const EndpointHealth& health, Clock::time_point now) { return health.rest_until > now; }

bool askable(const EndpointHealth& health, Clock::time_point now) { return !(health.forbidden && resting(health, now)); }

std::vector<std::size_t> order_of(std::span<const EndpointHealth> endpoints, Clock::time_point now)
{
    std::vector<std::size_t> out;
    for (std::size_t i = 0; i < endpoints.size(); ++i)
    {
        if (askable(endpoints[i], now)) { out.push_back(i); }
    }
    std::stable_sort(out.begin(), out.end(),
                     [&](std::size_t a, std::size_t b)
                     {
                         const bool rests_a = resting(endpoints[a], now);
                         const bool rests_b = resting(endpoints[b], now);
                         if (rests_a != rests_b) { return rests_b; }
                         return rests_a && endpoints[a].rest_until < endpoints[b].rest_until;
                     });
    return out;
}

std::string describe(const EndpointHealth& health, Clock::time_point now)
{
    if (!health.last) { return health.answers == 0 ? "not asked yet" : "ok"; }
    std::string out{to_string(health.last->fault)};
    if (!health.last->detail.empty()) { out += " (" + health.last->detail + ")"; }
    if (resting(health, now))
    {
        const auto left = std::chrono::duration_cast<std::chrono::seconds>(health.rest_until - now + milliseconds{999});
        out += (health.forbidden ? ", not asked again for " : ", asked again in ") + std::to_string(left.count()) + " s";
    }
    return out;
}

} // namespace dstack::auth::chain
