#pragma once
#include "shared/crypto/k256.hpp"
#include "shared/crypto/kdf.hpp"
#include "shared/crypto/p256.hpp"
#include <optional>

/// The KMS's key derivations (dstack-protocol.md E.3, D.5), byte for byte upstream's: a disk that one KMS encrypted
/// opens with the keys of the other when both have the same roots.
namespace dstack::crypto
{

/// A child key of the root CA key: its scalar is derive(root scalar, context).
Result<P256Key> derive_p256(const P256Key& root, Context context);
/// SHA-256 of the PKCS#8 DER of that child.
Result<Bytes32> derive_dh_secret(const P256Key& root, Context context);

/// `instance_id` may be empty (no_instance_id).
Result<Bytes32> app_disk_key(const P256Key& root, View app_id, View instance_id);
/// An X25519 secret.
Result<Bytes32> app_env_key(const P256Key& root, View app_id);
Result<P256Key> app_ca_key(const P256Key& root, View app_id);
Result<Bytes32> app_k256_key(const Bytes32& root_k256, View app_id);

/// Recoverable, over Keccak-256 of `domain || ":" || app_id || [timestamp, 8 bytes big endian] || message`.
Result<K256Signature> sign_for_app(const Bytes32& root_k256, std::string_view domain, View app_id,
                                   std::optional<std::uint64_t> timestamp, View message);
/// The key that made such a signature: compare it with the one that is trusted.
Result<K256Public> recover_for_app(std::string_view domain, View app_id, std::optional<std::uint64_t> timestamp,
                                   View message, const K256Signature& signature);
inline constexpr std::string_view kms_issued_domain = "dstack-kms-issued";
inline constexpr std::string_view env_pubkey_domain = "dstack-env-encrypt-pubkey";

} // namespace dstack::crypto
