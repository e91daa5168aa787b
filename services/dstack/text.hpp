#pragma once
#include "shared/base/result.hpp"
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::cli
{

/// Guest output and other hostile text for a terminal: control characters (C0 but tab, DEL, C1) and bytes that are no UTF-8
/// become \xNN.
std::string printable(std::string_view text);

/// "3s", "5m", "2h", "4d": how long before `now_ms` an RFC 3339 UTC time was; "-" when it is none.
std::string age(std::string_view rfc3339, std::uint64_t now_ms);
/// Unix time in ms of an RFC 3339 time: "2026-01-31T10:20:30.123Z", "2026-01-31 11:20:30+01:00".
Result<std::uint64_t> parse_time(std::string_view text);
/// "90", "90s", "5m", "2h", "1d" and "250ms" in ms; a bare number is seconds.
Result<std::uint64_t> parse_duration(std::string_view text);
/// "512", "512M", "1G", "1024MiB" in MiB; a bare number is MiB.
Result<std::uint32_t> parse_mebibytes(std::string_view text);

/// Columns padded to their widest cell, two spaces between; no trailing spaces. The first row is the heading.
std::string table(const std::vector<std::vector<std::string>>& rows);

/// The top-level scalars of a JSON object as ` key=value key="two words"`, control characters escaped; lists and objects
/// as JSON. What is empty is left out, and so is text that only says `subject` again.
std::string fields_of(std::string_view json, std::string_view subject);

} // namespace dstack::cli
