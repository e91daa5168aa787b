#include "services/auth/json_text.hpp"
#include <algorithm>
#include <cstdint>
#include <cstring>

namespace dstack::auth
{

namespace
{

constexpr bool is_plain_byte(char c)
{
    const auto byte = static_cast<unsigned char>(c);
    return byte >= 0x20 && byte < 0x7f && c != '"' && c != '\\';
}

} // namespace

namespace
{

/// How many bytes at the start need no escape: eight at a time.
std::size_t plain_prefix(std::string_view text)
{
    constexpr std::uint64_t ones = 0x0101010101010101;
    constexpr std::uint64_t high = 0x8080808080808080;
    const auto has_zero = [](std::uint64_t x) { return (x - ones) & ~x & high; };
    std::size_t i = 0;
    for (; i + 8 <= text.size(); i += 8)
    {
        std::uint64_t x = 0;
        std::memcpy(&x, text.data() + i, 8);
        const std::uint64_t small = (x - ones * 0x20) & ~x & high; // < 0x20
        const std::uint64_t bad = small | has_zero(x ^ ones * '"') | has_zero(x ^ ones * '\\') | has_zero(x ^ ones * 0x7f) | (x & high);
        if (bad != 0) { break; }
    }
    while (i < text.size() && is_plain_byte(text[i])) { ++i; }
    return i;
}

} // namespace

char* write_escaped(char* out, std::string_view text)
{
    static constexpr std::string_view hex = "0123456789abcdef";
    while (!text.empty())
    {
        const std::size_t plain = plain_prefix(text);
        std::memcpy(out, text.data(), plain);
        out += plain;
        text.remove_prefix(plain);
        if (text.empty()) { break; }
        const char c = text.front();
        const auto byte = static_cast<unsigned char>(c);
        *out++ = '\\';
        if (c == '"' || c == '\\') { *out++ = c; }
        else
        {
            std::memcpy(out, "u00", 3);
            out[3] = hex[byte >> 4];
            out[4] = hex[byte & 15];
            out += 5;
        }
        text.remove_prefix(1);
    }
    return out;
}

void append_json_string(std::string& out, std::string_view text)
{
    const std::size_t before = out.size();
    out += '"';
    const std::size_t plain = plain_prefix(text);
    out.append(text, 0, plain);
    if (plain < text.size())
    {
        out.resize(before + 1 + 6 * text.size());
        const char* const end = write_escaped(out.data() + before + 1, text);
        out.resize(static_cast<std::size_t>(end - out.data()));
    }
    out += '"';
}

std::string printable(std::string_view text)
{
    std::string out{text.substr(0, 300)};
    std::replace_if(
        out.begin(), out.end(), [](char c) { return c < 0x20 || c > 0x7e; }, '?');
    return out;
}

} // namespace dstack::auth
