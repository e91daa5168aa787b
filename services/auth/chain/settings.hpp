#pragma once
#include "shared/base/result.hpp"
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace dstack::config
{
class Document;
}

namespace dstack::auth::chain
{

/// [backend] with type = "chain".
struct Settings
{
    std::vector<std::string> rpc_urls; ///< the preferred first; they may hold secrets
    std::string rpc_urls_file;         ///< instead: one a line; a name without a slash is a systemd credential
    std::string contract;              ///< the KMS contract, 40 hex digits, lower case
    std::uint64_t chain_id = 0;
    std::optional<std::uint64_t> confirmations; ///< blocks on top of the one that is judged; empty: the block tagged "finalized"
    std::size_t quorum = 1;                     ///< endpoints that must say the same
    std::chrono::milliseconds deadline{3000};   ///< for one question, all endpoints together
    std::chrono::milliseconds hedge_delay{500}; ///< then the next endpoint is asked as well
    std::chrono::seconds max_block_age{7200};   ///< a block that is older is no answer; 0: any age
    std::chrono::seconds probe_interval{60};    ///< GET /'s values are renewed so often without being asked for; 0: never
    bool plain_http = false;                    ///< http:// to other hosts than this one
    std::string ca_file;                        ///< PEM; empty: the system's roots
};

/// Complains in `document`.
Settings read_settings(config::Document& document);

} // namespace dstack::auth::chain
