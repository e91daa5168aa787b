#include "bus/broker/config.hpp"
#include "shared/config/config.hpp"

namespace dstack::bus
{

std::string state_directory(const BrokerConfig& config)
{
    const auto slash = config.journal.rfind('/');
    return slash == std::string::npos ? "." : config.journal.substr(0, slash);
}

Result<BrokerConfig> parse_config(std::string_view toml)
{
    auto document = config::Document::parse(toml);
    if (!document) { return std::move(document).error(); }
    BrokerConfig out;
    std::uint64_t max_age_days = 0;
    std::uint64_t max_megabytes = 0;
    document->section("bus")
        .read("directory", out.directory)
        .read("journal", out.journal)
        .read("metrics", out.metrics)
        .read("max_events", out.retention.max_events, 1000, 1'000'000'000)
        .read("max_age_days", max_age_days, 0, 36'500)
        .read("max_megabytes", max_megabytes, 0, 100'000'000);
    out.retention.max_age_ms = max_age_days * 24 * 3600 * 1000;
    out.retention.max_bytes = max_megabytes * 1024 * 1024;
    std::string listen;
    std::string advertise;
    auto tcp = document->section("tcp");
    tcp.read("listen", listen).read("advertise", advertise);
    const auto endpoint = [&tcp](const char* key, const std::string& text, std::optional<Endpoint>& into)
    {
        if (text.empty()) { return; }
        auto parsed = parse_endpoint(text);
        if (parsed) { into = std::move(*parsed); }
        else { tcp.refuse(key, parsed.error().message); }
    };
    endpoint("listen", listen, out.tcp);
    endpoint("advertise", advertise, out.advertise);
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
