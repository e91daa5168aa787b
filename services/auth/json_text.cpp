#include "services/auth/json_text.hpp"
#include <algorithm>

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

void append_json_string(std::string& out, std::string_view text)
{
    static constexpr std::string_view hex = "0123456789abcdef";
    out += '"';
    std::size_t done = 0;
    for (std::size_t i = 0; i < text.size(); ++i)
    {
        const char c = text[i];
        if (is_plain_byte(c)) { continue; }
        out.append(text, done, i - done);
        done = i + 1;
        const auto byte = static_cast<unsigned char>(c);
        if (c == '"' || c == '\\') { (out += '\\') += c; }
        else { ((out += "\\u00") += hex[byte >> 4]) += hex[byte & 15]; }
    }
    out.append(text, done);
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
