#pragma once
#include "shared/base/result.hpp"
#include "shared/crypto/bytes.hpp"
#include <string>
#include <string_view>

namespace dstack::kms_supervisor
{

/// By what a KMS is known; what is pinned.
struct Identity
{
    std::string ca_fingerprint; ///< SHA-256 of its CA certificate, hex
    std::string k256_pubkey;    ///< compressed secp256k1 key, hex

    bool operator==(const Identity&) const = default;
};

/// What one probe saw.
struct Probe
{
    enum class Kind
    {
        ready,    ///< GetMeta with a CA certificate that parses, is valid, and has issued the server's own certificate
        answered, ///< something answered, but not that: an error (such as a webhook that is down) or nonsense
        silent,   ///< nothing answered
    };
    Kind kind = Kind::silent;
    Identity identity{};  ///< when ready
    std::string reason{}; ///< when not
};

/// The verdict over an answer to POST /prpc/GetMeta?json. `leaf_der` is the certificate of the TLS connection: that the
/// CA in the body has issued it is what makes the body more than a copy.
Probe judge(int status, std::string_view body, crypto::View leaf_der, std::int64_t unix_time);

std::string encode(const Identity& identity);
/// A damaged pin is an error: it must never read as "nothing was pinned".
Result<Identity> decode_identity(std::string_view json);

} // namespace dstack::kms_supervisor
