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
        .read("create_policy", out.create_policy)
        .require("ledger_dir", out.ledger_dir)
        .read_ms("ledger_flush_ms", out.ledger_flush, 0, 10'000)
        .read_ms("idle_timeout_ms", out.idle_timeout, 100, 3'600'000)
        .read_ms("request_timeout_ms", out.request_timeout, 100, 600'000);
    auto backend = document->section("backend");
    backend.read_choice("type", out.backend, {"file", "chain"});
    auto auth = document->section("auth");
    if (out.backend == "file") { auth.require("policy_file", out.policy_file); }
    else
    {
        auth.read("policy_file", out.policy_file);
        out.chain = chain::read_settings(*document);
        if (out.chain.deadline >= out.request_timeout)
        {
            backend.refuse("deadline_ms", "must be less than auth.request_timeout_ms: the answer has to leave in time");
        }
    }
    document->section("bus").read("directory", out.bus_directory);
    auto complete = document->finish();
    if (!complete) { return std::move(complete).error(); }
    return out;
}

} // namespace dstack::auth
