#include "services/guest-agent/restart.hpp"
#include <algorithm>

namespace dstack::guest
{

std::optional<std::chrono::milliseconds> restart_delay(const compose::Restart& restart, bool failed, unsigned attempts)
{
    using Policy = compose::Restart::Policy;
    switch (restart.policy)
    {
    case Policy::no:
        return std::nullopt;
    case Policy::on_failure:
        if (!failed || (restart.max_attempts != 0 && attempts > restart.max_attempts)) { return std::nullopt; }
        break;
    case Policy::always:
    case Policy::unless_stopped:
        break;
    }
    const unsigned doublings = std::min(attempts == 0 ? 0U : attempts - 1, 9U);
    return std::min(std::chrono::milliseconds{100} * (1U << doublings), std::chrono::milliseconds{30'000});
}

} // namespace dstack::guest
