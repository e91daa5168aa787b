#pragma once
#include "shared/base/result.hpp"
#include "shared/crypto/bytes.hpp"

namespace dstack::crypto
{

using K256Public = Fixed<33>;    ///< compressed point
using K256Signature = Fixed<65>; ///< r || s || v with v in 0..3

/// A secret that is zero or not below the curve's order is refused (chance: 2^-128).
Result<K256Public> k256_public(const Bytes32& secret);
/// Deterministic (RFC 6979), low s, over a 32-byte digest.
Result<K256Signature> k256_sign(const Bytes32& secret, const Bytes32& digest);
/// Who signed it; there is no other verification of a recoverable signature than comparing with the expected key.
Result<K256Public> k256_recover(const Bytes32& digest, const K256Signature& signature);
Bytes32 k256_generate();

} // namespace dstack::crypto
