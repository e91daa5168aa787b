#include "services/auth/chain/settings.hpp"
#include "services/auth/chain/endpoint.hpp"
#include "services/auth/json_reader.hpp"
#include "shared/config/config.hpp"
#include <limits>

namespace dstack::auth::chain
{

Settings read_settings(config::Document& document)
{
    Settings out;
    std::int64_t confirmations = -1;
    std::int64_t age = out.max_block_age.count();
    std::int64_t probe = out.probe_interval.count();
    std::string contract;
    auto section = document.section("backend");
    section.read("rpc_urls", out.rpc_urls)
        .read("rpc_urls_file", out.rpc_urls_file)
        .require("contract", contract)
        .read("chain_id", out.chain_id, 1, std::numeric_limits<std::int64_t>::max())
        .read("confirmations", confirmations, 0, 1'000'000)
        .read("quorum", out.quorum, 1, static_cast<std::int64_t>(max_endpoints))
        .read_ms("deadline_ms", out.deadline, 100, 60'000)
        .read_ms("hedge_ms", out.hedge_delay, 10, 60'000)
        .read("max_block_age_s", age, 0, 31'536'000)
        .read("probe_interval_s", probe, 0, 86'400)
        .read("allow_plain_http", out.plain_http)
        .read("ca_file", out.ca_file);
    if (confirmations >= 0) { out.confirmations = static_cast<std::uint64_t>(confirmations); }
    out.max_block_age = std::chrono::seconds{age};
    out.probe_interval = std::chrono::seconds{probe};
    if (out.chain_id == 0) { section.refuse("chain_id", "missing: the number that eth_chainId has to answer"); }
    const auto address = normal_hex(contract, 40);
    if (!contract.empty() && !address) { section.refuse("contract", hex_complaint(contract, 40)); }
    out.contract = address.value_or("");
    if (out.hedge_delay >= out.deadline) { section.refuse("hedge_ms", "must be less than deadline_ms"); }
    if (out.rpc_urls.empty() == out.rpc_urls_file.empty())
    {
        section.refuse("rpc_urls", "give the endpoints either here or in rpc_urls_file");
    }
    if (!out.rpc_urls.empty())
    {
        auto endpoints = parse_endpoints(out.rpc_urls, out.plain_http);
        if (!endpoints) { section.refuse("rpc_urls", endpoints.error().message); }
        else if (out.quorum > out.rpc_urls.size()) { section.refuse("quorum", "more than there are rpc_urls"); }
    }
    return out;
}

} // namespace dstack::auth::chain
