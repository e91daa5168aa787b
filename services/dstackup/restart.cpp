#include "services/dstackup/restart.hpp"
#include <algorithm>
#include <sysexits.h>

namespace dstack::up
{

RestartDecision RestartBudget::ended(std::chrono::steady_clock::time_point now, std::optional<int> exit_code)
{
    while (!ends_.empty() && now - ends_.front() > window) { ends_.pop_front(); }
    ends_.push_back(now);
    if (exit_code == EX_CONFIG) { return {true, {}, "config"}; }
    if (exit_code == EX_USAGE) { return {true, {}, "usage"}; }
    if (ends_.size() > budget) { return {true, {}, "crash_loop"}; }
    auto delay = first_delay;
    for (std::size_t n = 1; n < ends_.size(); ++n) { delay = std::min(delay * 2, longest_delay); }
    return {false, delay, {}};
}

} // namespace dstack::up
