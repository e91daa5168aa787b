#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::crypto
{

using Bytes = std::vector<std::uint8_t>;
using View = std::span<const std::uint8_t>; ///< borrowed bytes; valid only during the call

template <std::size_t N>
using Fixed = std::array<std::uint8_t, N>;
using Bytes20 = Fixed<20>;
using Bytes32 = Fixed<32>;
using Bytes48 = Fixed<48>;
using Bytes64 = Fixed<64>;

/// The bytes of a text, without its terminator.
inline View view(std::string_view text) { return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()}; }
/// Bytes that are text (PEM, JSON) as text; may contain anything.
inline std::string text(View bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }
inline Bytes copy(View bytes) { return {bytes.begin(), bytes.end()}; }
inline void append(Bytes& out, View bytes) { out.insert(out.end(), bytes.begin(), bytes.end()); }

/// Equal in length and content, in a time that depends only on the length: for secrets and their hashes.
bool constant_time_equal(View a, View b);
/// Overwrites a secret in a way that the compiler does not remove.
void wipe(std::span<std::uint8_t> secret);

/// From the operating system's generator. Without randomness nothing here is safe: failure aborts the process.
void fill_random(std::span<std::uint8_t> out);
Bytes random_bytes(std::size_t count);
template <std::size_t N>
Fixed<N> random_fixed()
{
    Fixed<N> out;
    fill_random(out);
    return out;
}

} // namespace dstack::crypto
