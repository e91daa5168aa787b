#include "services/logs/config.hpp"
#include "shared/config/config.hpp"

namespace dstack::logs
{

Result<Config> parse_config(std::string_view toml)
{
    auto document = config::Document::parse(toml);
    if (!document) { return std::move(document).error(); }
    Config out;
    constexpr std::int64_t largest = std::int64_t{1} << 50U;
    auto section = document->section("logs");
    section.read("socket", out.socket)
        .read("listen", out.listen)
        .read("port", out.port, 0, 65535)
        .require("store_dir", out.store_dir)
        .require("vm_root", out.vm_root)
        .read("service_log_dir", out.service_log_dir)
        .read("source_bytes", out.source_bytes, 64 * 1024, largest)
        .read("total_bytes", out.total_bytes, 64 * 1024, largest)
        .read("flood_bytes", out.flood_bytes, 64 * 1024, largest);
    if (section.present() && out.socket.empty() && out.listen.empty())
    {
        section.refuse("store_dir", "one of socket and listen must be there too");
    }
    document->section("events")
        .read("listen", out.events_listen)
        .read("port", out.events_port, 0, 65535)
        .read("token_file", out.events_token_file)
        .read_ms("heartbeat_ms", out.events_heartbeat, 100, 600'000)
        .read_ms("stall_ms", out.events_stall, 100, 600'000);
    document->section("bus").read("directory", out.bus_directory);
    auto complete = document->finish();
    if (!complete) { return std::move(complete).error(); }
    if (out.events_token_file.empty()) { out.events_token_file = out.store_dir + "/events.token"; }
    return out;
}

} // namespace dstack::logs
