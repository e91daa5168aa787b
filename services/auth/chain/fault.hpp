#pragma once
#include <chrono>
#include <optional>
#include <string>
#include <string_view>

namespace dstack::auth::chain
{

/// Why an endpoint gave no answer that can be used.
enum class Fault
{
    rate_limited,  ///< 429, or the JSON-RPC errors that say the same
    server_error,  ///< 5xx
    refused,       ///< another 4xx: a key that is missing or wrong
    redirected,    ///< 3xx: never followed, the answer would be somebody else's
    unreachable,   ///< no name, no connection, the connection broke
    tls,           ///< the certificate is not the host's
    timeout,       ///< nothing within the deadline
    slow,          ///< somebody else, asked later, answered first
    too_large,     ///< more bytes than any honest answer has
    malformed,     ///< no JSON-RPC batch, or not in the form of the contract's interface
    rpc_error,     ///< a JSON-RPC error that is not about the contract
    no_contract,   ///< nothing is deployed at the address
    stale,         ///< the block is too old, or not there (yet)
    wrong_chain,   ///< another chain id than the configured one
};

/// "rpc_rate_limited", ...
std::string_view to_string(Fault fault);

struct Failure
{
    Fault fault = Fault::malformed;
    std::string detail{}; ///< printable ASCII, short, without anything of the URL
    std::optional<std::chrono::seconds> retry_after{}; ///< when the server said so
};

/// Printable ASCII of at most `limit` characters: texts of others in reasons and logs. Quotes and backslashes become '?'.
std::string plain(std::string_view text, std::size_t limit = 120);

} // namespace dstack::auth::chain
