#pragma once
#include "shared/base/result.hpp"
#include <array>
#include <cstdint>
#include <optional>
#include <simdjson.h>
#include <string>
#include <string_view>
#include <vector>

// Strict reading of outside JSON over simdjson's DOM. Internal to auth_core.
namespace dstack::auth
{

/// Parses the whole text: nothing but whitespace may follow the value; UTF-8 and nesting (16) are checked.
/// The element lives as long as `parser`.
Result<simdjson::dom::element> parse_json(simdjson::dom::parser& parser, std::string_view text);

/// The members of an object; a key that comes twice is an error, because two readers could take different ones.
Result<std::vector<simdjson::dom::key_value_pair>> members_of(simdjson::dom::element element, std::string_view where);

Result<std::string> string_of(simdjson::dom::element element, std::string_view where);
Result<bool> bool_of(simdjson::dom::element element, std::string_view where);
std::string_view type_name(simdjson::dom::element element);

namespace detail
{
constexpr std::array<std::int8_t, 256> hex_values = []
{
    std::array<std::int8_t, 256> out{};
    out.fill(-1);
    for (std::size_t i = 0; i < 10; ++i) { out['0' + i] = static_cast<std::int8_t>(i); }
    for (std::size_t i = 0; i < 6; ++i) { out['a' + i] = out['A' + i] = static_cast<std::int8_t>(10 + i); }
    return out;
}();
} // namespace detail
/// Its value; -1 for what is no hex digit.
inline int hex_digit(char c) { return detail::hex_values[static_cast<unsigned char>(c)]; }

/// Hex with or without 0x, any case, exactly `digits` digits, as lower case without 0x.
std::optional<std::string> normal_hex(std::string_view text, std::size_t digits);
/// "must be 64 hex digits, has 62": for the error after normal_hex refused.
std::string hex_complaint(std::string_view text, std::size_t digits);
/// Printable ASCII of at most `limit` characters.
bool is_plain(std::string_view text, std::size_t limit);
/// Names from outside in messages: printable ASCII, cut to a bounded length.
std::string shown(std::string_view text);

} // namespace dstack::auth
