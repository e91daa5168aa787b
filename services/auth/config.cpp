#include "services/auth/config.hpp"
#include "shared/config/config.hpp"
#include <charconv>
#include <optional>

namespace dstack::auth
{

namespace
{

/// "each", or such as "10ms".
std::optional<std::chrono::milliseconds> flush_interval(std::string_view text)
{
    if (text == "each") { return std::chrono::milliseconds{0}; }
    if (!text.ends_with("ms")) { return std::nullopt; }
    text.remove_suffix(2);
    std::int64_t count = 0;
    const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), count);
    if (failed != std::errc{} || end != text.data() + text.size() || count < 1 || count > 1000) { return std::nullopt; }
    return std::chrono::milliseconds{count};
}

} // namespace

Result<Config> parse_config(std::string_view toml)
{
    auto document = config::Document::parse(toml);
    if (!document) { return std::move(document).error(); }
    Config out;
    std::string flush = "each";
    auto section = document->section("auth");
    section
        .read("listen", out.listen)
        .read("port", out.port, 0, 65535)
        .read("create_policy", out.create_policy)
        .require("ledger_dir", out.ledger_dir)
        .read("ledger_flush", flush)
        .read("ledger_segment_kib", out.ledger_segment_kib, 64, 4'194'304)
        .read_ms("idle_timeout_ms", out.idle_timeout, 100, 3'600'000)
        .read_ms("request_timeout_ms", out.request_timeout, 100, 600'000);
    const auto interval = flush_interval(flush);
    if (interval) { out.ledger_flush = *interval; }
    else { section.refuse("ledger_flush", "must be \"each\" or \"1ms\" to \"1000ms\""); }
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
