#pragma once
#include "shared/base/result.hpp"
#include "shared/crypto/bytes.hpp"

namespace dstack::crypto
{

using Nonce = Fixed<12>; ///< never used twice with the same key

/// AES-256-GCM: ciphertext followed by the 16-byte tag.
Bytes aes256_gcm_seal(const Bytes32& key, const Nonce& nonce, View plaintext, View associated = {});
/// Authentication fails as one error, whatever was changed.
Result<Bytes> aes256_gcm_open(const Bytes32& key, const Nonce& nonce, View sealed, View associated = {});

/// The encrypted environment (dstack-protocol.md D.4): ephemeral X25519 public key (32), nonce (12), ciphertext, tag
/// (16); the X25519 shared secret is the AES key as it is.
Result<Bytes> seal_env(const Bytes32& recipient_public, View plaintext);
Result<Bytes> open_env(const Bytes32& recipient_secret, View blob);

} // namespace dstack::crypto
