#pragma once
#include <array>
#include <string_view>

namespace dstack::ledger
{

/// What of the boot a rule looks at. A check leaves out what came when it is that, and what was expected when that is it.
struct Judged
{
    std::string_view rule;
    std::string_view key; ///< in "boot"
};
inline constexpr std::array<Judged, 6> judged{{
    {"tcb_status", "tcbStatus"},
    {"os_image", "osImageHash"},
    {"app", "appId"},
    {"compose_hash", "composeHash"},
    {"device", "deviceId"},
    {"aggregated_mr", "mrAggregated"},
}};

/// Empty when it is none of these.
constexpr std::string_view boot_key_of(std::string_view rule)
{
    for (const Judged& one : judged)
    {
        if (one.rule == rule) { return one.key; }
    }
    return {};
}

} // namespace dstack::ledger
