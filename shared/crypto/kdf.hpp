#pragma once
#include "shared/base/result.hpp"
#include "shared/crypto/bytes.hpp"
#include <initializer_list>

namespace dstack::crypto
{

/// RFC 5869. `size` at most 8160 bytes; an impossible size aborts.
Bytes hkdf_sha256(View salt, View key, View info, std::size_t size);

/// Byte strings that are concatenated without separators.
using Context = std::initializer_list<View>;

/// Upstream's derivation (dstack-protocol.md E.3): HKDF-SHA256 with the salt "RATLS" and the context as info.
/// The salt is part of every disk key in the field: it never changes.
Bytes32 derive(View key, Context context);

} // namespace dstack::crypto
