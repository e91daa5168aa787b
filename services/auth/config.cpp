#include "services/auth/config.hpp"
#include "shared/config/config.hpp"

namespace dstack::auth
{

Result<Config> parse_config(std::string_view toml)
{
    auto document = config::Document::parse(toml);
    if (!document) { return std::move(document).error(); }
    Config out;
    document->section("auth")
        .read("listen", out.listen)
        .read("port", out.port, 0, 65535)
        .require("policy_file", out.policy_file)
        .read("create_policy", out.create_policy)
        .require("ledger_dir", out.ledger_dir)
        .read_ms("idle_timeout_ms", out.idle_timeout, 100, 3'600'000)
        .read_ms("request_timeout_ms", out.request_timeout, 100, 600'000);
    document->section("bus").read("directory", out.bus_directory);
    auto complete = document->finish();
    if (!complete) { return std::move(complete).error(); }
    return out;
}

} // namespace dstack::auth
