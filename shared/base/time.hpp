#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace dstack
{

/// The wall clock in milliseconds since 1970.
std::uint64_t unix_ms();

/// "2025-01-02T03:04:05.678Z": RFC 3339, UTC, always with milliseconds.
std::string rfc3339(std::uint64_t unix_ms);
/// The inverse, of exactly that form.
std::optional<std::uint64_t> unix_ms_from_rfc3339(std::string_view text);

} // namespace dstack
