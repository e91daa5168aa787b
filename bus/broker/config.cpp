#include "bus/broker/config.hpp"
#include "shared/config/config.hpp"

namespace dstack::bus
{

Result<BrokerConfig> parse_config(std::string_view toml)
{
    auto document = config::Document::parse(toml);
    if (!document) { return std::move(document).error(); }
    BrokerConfig out;
    document->section("bus")
        .read("directory", out.directory)
        .read("journal", out.journal)
        .read("metrics", out.metrics)
        .read("max_events", out.max_events, 1000, 1'000'000'000);
    document->section("identity")
        .read("admin_group", out.identity.admin_group)
        .read("operator_group", out.identity.operator_group)
        .read("viewer_group", out.identity.viewer_group);
    document->section("identity.services").read_map(out.identity.services);
    auto complete = document->finish();
    if (!complete) { return std::move(complete).error(); }
    if (!out.metrics.empty() && out.metrics.front() != '/') { out.metrics = out.directory + "/" + out.metrics; }
    for (const auto& [service, rule] : out.identity.services)
    {
        if (!rule.starts_with("user:") && !rule.starts_with("exe:"))
        {
            return Error{Errc::invalid_argument,
                         "identity.services." + service + ": must be \"user:NAME\" or \"exe:/path\", is \"" + rule + "\"", {}, {}};
        }
    }
    return out;
}

} // namespace dstack::bus
