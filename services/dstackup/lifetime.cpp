#include "services/dstackup/token_verbs.hpp"
#include <charconv>

namespace dstack::up
{

Result<std::uint64_t> parse_lifetime(std::string_view text)
{
    const auto bad = [text]
    { return Error{Errc::invalid_argument, "'" + std::string{text} + "' is no lifetime", "a number with s, m, h, d or w, such as 12h or 30d; at most 3650d", {}}; };
    std::uint64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc{} || end + 1 != text.data() + text.size() || number == 0) { return bad(); }
    std::uint64_t unit_s = 0;
    switch (*end)
    {
    case 's': unit_s = 1; break;
    case 'm': unit_s = 60; break;
    case 'h': unit_s = 3600; break;
    case 'd': unit_s = 24 * 3600; break;
    case 'w': unit_s = 7 * 24 * 3600; break;
    default: return bad();
    }
    constexpr std::uint64_t most_s = 3650ULL * 24 * 3600;
    if (number > most_s / unit_s) { return bad(); }
    return number * unit_s * 1000;
}

} // namespace dstack::up
