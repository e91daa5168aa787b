#include "services/kms-supervisor/config.hpp"
#include "shared/config/config.hpp"

namespace dstack::kms_supervisor
{

Result<Config> parse_config(std::string_view toml)
{
    auto document = config::Document::parse(toml);
    if (!document) { return std::move(document).error(); }
    Config out;
    std::string mode = "local";
    auto kms = document->section("kms");
    kms.read_choice("mode", mode, {"local", "external"})
        .read("url", out.url)
        .read("program", out.program)
        .read("config", out.program_config)
        .read("log", out.program_log)
        .require("state_dir", out.state_dir)
        .read_ms("probe_interval_ms", out.probe_interval, 10, 600'000)
        .read_ms("probe_timeout_ms", out.probe_timeout, 10, 60'000);
    out.local = mode == "local";
    if (!out.url.starts_with("https://")) { kms.refuse("url", "must begin with https://"); }
    if (out.local && out.program.empty())
    {
        kms.refuse("program", "mode \"local\" needs the path of dstack-kms-local");
    }
    if (out.local && out.program_config.empty())
    {
        kms.refuse("config", "mode \"local\" needs the path of dstack-kms-local's configuration");
    }
    document->section("restart")
        .read_ms("backoff_initial_ms", out.restart.backoff_initial, 1, 600'000)
        .read_ms("backoff_max_ms", out.restart.backoff_max, 1, 3'600'000)
        .read("budget", out.restart.budget, 0, 1000)
        .read_ms("stable_after_ms", out.restart.stable_after, 1, 3'600'000)
        .read_ms("hung_after_ms", out.restart.hung_after, 100, 3'600'000);
    document->section("bus").read("directory", out.bus_directory);
    auto complete = document->finish();
    if (!complete) { return std::move(complete).error(); }
    return out;
}

} // namespace dstack::kms_supervisor
