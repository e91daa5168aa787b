#pragma once
#include "bus/broker/identity.hpp"
#include "bus/broker/retention.hpp"
#include "shared/base/result.hpp"
#include <string>
#include <string_view>

namespace dstack::bus
{

/// bus.toml
struct BrokerConfig
{
    std::string directory = "/run/dstack/bus";        ///< [bus] directory: commands.sock and events.sock
    std::string journal = "/var/lib/dstack/bus/journal.db"; ///< [bus] journal
    Retention retention{};                             ///< [bus] max_events, max_age_days, max_megabytes: older events are removed, as a gap
    std::string metrics = "metrics.sock";              ///< [bus] metrics: unix socket of GET /metrics, relative to the directory; "": none
    IdentityRules identity{};                          ///< [identity] groups, [identity.services] service = "user:..." | "exe:..."
};

Result<BrokerConfig> parse_config(std::string_view toml);

} // namespace dstack::bus
