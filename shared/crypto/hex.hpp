#pragma once
#include "shared/base/result.hpp"
#include "shared/crypto/bytes.hpp"
#include <algorithm>

namespace dstack::crypto
{

/// Lower-case, without 0x.
std::string to_hex(View bytes);

/// Strict: any case, one optional "0x"; an odd number of digits or any other character is an error.
/// Never pads: a short value is refused, not extended.
Result<Bytes> from_hex(std::string_view text);
/// As above, and exactly `size` bytes: "expected 32 bytes (64 hex digits), got 62 digits".
Result<Bytes> from_hex(std::string_view text, std::size_t size);

template <std::size_t N>
Result<Fixed<N>> from_hex_fixed(std::string_view text)
{
    auto bytes = from_hex(text, N);
    if (!bytes) { return std::move(bytes).error(); }
    Fixed<N> out;
    std::copy_n(bytes->begin(), N, out.begin());
    return out;
}

/// Standard alphabet with padding (RFC 4648 section 4).
std::string to_base64(View bytes);
/// Strict: padded, no whitespace, no stray bits.
Result<Bytes> from_base64(std::string_view text);

} // namespace dstack::crypto
