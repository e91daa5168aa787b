#pragma once
#include "bus/protocol/endpoint.hpp"
#include "shared/base/result.hpp"
#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace dstack::bus
{

/// What a remote operator needs to reach a broker over tcp, and all that may be asked of whoever carries it: a secret.
struct Join
{
    std::string name;    ///< the token's name, for messages
    Endpoint endpoint;   ///< where the broker said it is; --host overrides it
    std::array<std::uint8_t, 32> server_key{}; ///< CURVE public key of the broker
    std::array<std::uint8_t, 32> secret_key{}; ///< CURVE secret key of the token
    std::uint64_t expires_ms = 0;              ///< unix time; only to explain a refusal
};

/// "dstack-join-v1.<base64url of a JSON object and the first 4 bytes of its SHA-256>", one line.
std::string to_join_string(const Join& join);
/// Surrounding white space is fine. A text that is cut short or mistyped is invalid_argument, and never shown.
Result<Join> parse_join_string(std::string_view text);

/// The join string in a file, or on stdin for "-". permission_denied when others than the owner may read the file.
Result<Join> read_token_file(const std::string& path);

/// First 16 hex digits of the SHA-256 of a public key.
std::string key_fingerprint(const std::array<std::uint8_t, 32>& public_key);

} // namespace dstack::bus
