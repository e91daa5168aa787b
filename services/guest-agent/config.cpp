#include "services/guest-agent/config.hpp"
#include "shared/config/config.hpp"

namespace dstack::guest
{

Result<Config> parse_config(std::string_view toml)
{
    auto document = config::Document::parse(toml);
    if (!document) { return std::move(document).error(); }
    Config out;
    config::Section agent = document->section("agent");
    agent.read("listen", out.listen).read("port", out.port, 1, 65535);
    agent.read_ms("kms_timeout_ms", out.kms_timeout, 1'000, 600'000);
    agent.read_ms("ready_timeout_ms", out.ready_timeout, 1'000, 600'000);
    agent.read_ms("stop_grace_ms", out.stop_grace, 0, 600'000);
    auto complete = document->finish();
    if (!complete) { return std::move(complete).error(); }
    return out;
}

} // namespace dstack::guest
