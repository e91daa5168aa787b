#pragma once
#include "shared/base/result.hpp"
#include "shared/crypto/bytes.hpp"

namespace dstack::crypto
{

/// X25519 (RFC 7748). Any 32 bytes are a secret.
Bytes32 x25519_public(const Bytes32& secret);
/// The shared secret; a peer key of small order (all-zero result) is refused.
Result<Bytes32> x25519_shared(const Bytes32& secret, const Bytes32& peer_public);

/// Ed25519 (RFC 8032). Any 32 bytes are a seed; signatures are deterministic.
Bytes32 ed25519_public(const Bytes32& seed);
Bytes64 ed25519_sign(const Bytes32& seed, View message);
bool ed25519_verify(const Bytes32& public_key, View message, const Bytes64& signature);

} // namespace dstack::crypto
