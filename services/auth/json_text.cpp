#include "services/auth/json_text.hpp"
#include <algorithm>

namespace dstack::auth
{

void append_json_string(std::string& out, std::string_view text)
{
    static constexpr std::string_view hex = "0123456789abcdef";
    out += '"';
    for (const char c : text)
    {
        const auto byte = static_cast<unsigned char>(c);
        if (c == '"' || c == '\\') { (out += '\\') += c; }
        else if (byte < 0x20 || byte >= 0x7f) { ((out += "\\u00") += hex[byte >> 4]) += hex[byte & 15]; }
        else { out += c; }
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
