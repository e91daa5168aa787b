#include "services/dstack/text.hpp"
#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>

namespace dstack::cli
{

namespace
{
/// Length of the UTF-8 character at the beginning; 0 when there is none.
std::size_t utf8_length(std::string_view text)
{
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    const unsigned char first = byte(0);
    if (first < 0x80) { return 1; }
    std::size_t size = 0;
    std::uint32_t point = 0;
    if (first >= 0xc2 && first < 0xe0) { size = 2, point = first & 0x1fU; }
    else if (first >= 0xe0 && first < 0xf0) { size = 3, point = first & 0x0fU; }
    else if (first >= 0xf0 && first < 0xf5) { size = 4, point = first & 0x07U; }
    if (size == 0 || size > text.size()) { return 0; }
    for (std::size_t i = 1; i < size; ++i)
    {
        if ((byte(i) & 0xc0U) != 0x80U) { return 0; }
        point = (point << 6U) | (byte(i) & 0x3fU);
    }
    const bool overlong = (size == 3 && point < 0x800) || (size == 4 && point < 0x10000);
    if (overlong || point > 0x10ffff || (point >= 0xd800 && point < 0xe000)) { return 0; }
    return size;
}

bool is_control(std::string_view character)
{
    const auto first = static_cast<unsigned char>(character[0]);
    if (character.size() == 1) { return (first < 0x20 && first != '\t') || first == 0x7f; }
    return first == 0xc2 && static_cast<unsigned char>(character[1]) < 0xa0; // C1
}

void append_escaped(std::string& out, std::string_view bytes)
{
    for (const char c : bytes)
    {
        std::array<char, 5> text{};
        std::snprintf(text.data(), text.size(), "\\x%02x", static_cast<unsigned>(static_cast<unsigned char>(c)));
        out += text.data();
    }
}

Error bad(std::string_view what, std::string_view text, std::string_view form)
{
    return Error{Errc::invalid_argument, "'" + printable(text) + "' is no " + std::string{what}, "expected " + std::string{form}, {}};
}

/// Columns on a terminal, as far as counting characters goes.
std::size_t width(std::string_view text)
{
    return static_cast<std::size_t>(
        std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0U) != 0x80U; }));
}

/// A number and its unit: "5m" is 5 and "m".
struct Measured
{
    std::uint64_t number = 0;
    std::string_view unit;
};
bool measure(std::string_view text, Measured& out)
{
    const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), out.number);
    if (error != std::errc{} || out.number > 1'000'000'000ULL) { return false; }
    out.unit = text.substr(static_cast<std::size_t>(rest - text.data()));
    return true;
}
} // namespace

std::string printable(std::string_view text)
{
    // Most text is plain, and there may be thousands of it
    const bool plain = std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
    if (plain) { return std::string{text}; }
    std::string out;
    out.reserve(text.size());
    while (!text.empty())
    {
        const std::size_t size = utf8_length(text);
        const std::string_view one = text.substr(0, std::max<std::size_t>(size, 1));
        if (size == 0 || is_control(one)) { append_escaped(out, one); }
        else { out += one; }
        text.remove_prefix(one.size());
    }
    return out;
}

namespace
{
/// "Z", "+02:00", "-05:30": minutes east of UTC.
bool parse_offset(std::string_view text, std::int64_t& minutes)
{
    minutes = 0;
    if (text == "Z" || text == "z") { return true; }
    if (text.size() != 6 || (text[0] != '+' && text[0] != '-') || text[3] != ':') { return false; }
    const auto digit = [&](std::size_t i) { return text[i] >= '0' && text[i] <= '9' ? text[i] - '0' : 100; };
    const int hour = digit(1) * 10 + digit(2);
    const int minute = digit(4) * 10 + digit(5);
    if (hour > 23 || minute > 59) { return false; }
    minutes = (text[0] == '-' ? -1 : 1) * (hour * 60 + minute);
    return true;
}
} // namespace

Result<std::uint64_t> parse_time(std::string_view text)
{
    const auto wrong = [&] { return bad("time", text, "RFC 3339, such as 2026-01-31T10:20:30Z or 2026-01-31T11:20:30+01:00"); };
    std::string copy{text};
    if (copy.size() > 10 && (copy[10] == 't' || copy[10] == ' ')) { copy[10] = 'T'; }
    std::tm parts{};
    const char* rest = ::strptime(copy.c_str(), "%Y-%m-%dT%H:%M:%S", &parts);
    if (rest == nullptr || copy.size() < 20 || rest != copy.c_str() + 19) { return wrong(); } // each number in full
    std::string_view tail{rest};
    std::uint64_t millis = 0;
    if (tail.starts_with('.'))
    {
        tail.remove_prefix(1);
        std::uint64_t weight = 100;
        std::size_t digits = 0;
        for (; digits < tail.size() && tail[digits] >= '0' && tail[digits] <= '9'; ++digits, weight /= 10)
        {
            millis += static_cast<std::uint64_t>(tail[digits] - '0') * weight;
        }
        if (digits == 0) { return wrong(); }
        tail.remove_prefix(digits);
    }
    std::int64_t east = 0;
    if (!parse_offset(tail, east)) { return wrong(); }
    const int day = parts.tm_mday;
    const std::time_t local = ::timegm(&parts);
    const std::int64_t seconds = static_cast<std::int64_t>(local) - east * 60;
    if (parts.tm_mday != day || seconds < 0) { return wrong(); } // the 31st of a month that has 30 days
    return static_cast<std::uint64_t>(seconds) * 1000 + millis;
}

std::string age(std::string_view rfc3339, std::uint64_t now_ms)
{
    auto then = parse_time(rfc3339);
    if (!then || *then == 0) { return "-"; }
    const std::uint64_t seconds = now_ms > *then ? (now_ms - *then) / 1000 : 0;
    if (seconds < 120) { return std::to_string(seconds) + "s"; }
    if (seconds < 2 * 3600) { return std::to_string(seconds / 60) + "m"; }
    if (seconds < 48 * 3600) { return std::to_string(seconds / 3600) + "h"; }
    return std::to_string(seconds / 86400) + "d";
}

Result<std::uint64_t> parse_duration(std::string_view text)
{
    Measured value;
    const auto wrong = [&] { return bad("duration", text, "a number with ms, s, m, h or d, such as 90s"); };
    if (!measure(text, value)) { return wrong(); }
    if (value.unit == "ms") { return value.number; }
    if (value.unit.empty() || value.unit == "s") { return value.number * 1000; }
    if (value.unit == "m") { return value.number * 60'000; }
    if (value.unit == "h") { return value.number * 3'600'000; }
    if (value.unit == "d") { return value.number * 86'400'000; }
    return wrong();
}

Result<std::uint32_t> parse_mebibytes(std::string_view text)
{
    Measured value;
    const auto wrong = [&] { return bad("size", text, "a number of MiB, or with M or G, such as 512M"); };
    if (!measure(text, value)) { return wrong(); }
    std::uint64_t factor = 0;
    if (value.unit.empty() || value.unit == "M" || value.unit == "MB" || value.unit == "MiB") { factor = 1; }
    if (value.unit == "G" || value.unit == "GB" || value.unit == "GiB") { factor = 1024; }
    if (factor == 0 || value.number * factor > 0xffffffffULL) { return wrong(); }
    return static_cast<std::uint32_t>(value.number * factor);
}

std::string table(const std::vector<std::vector<std::string>>& rows)
{
    std::vector<std::size_t> widths;
    for (const auto& row : rows)
    {
        widths.resize(std::max(widths.size(), row.size()));
        for (std::size_t i = 0; i < row.size(); ++i) { widths[i] = std::max(widths[i], width(row[i])); }
    }
    std::string out;
    for (const auto& row : rows)
    {
        std::string line;
        for (std::size_t i = 0; i < row.size(); ++i)
        {
            line += row[i];
            if (i + 1 < row.size()) { line.append(widths[i] - width(row[i]) + 2, ' '); }
        }
        while (line.ends_with(' ')) { line.pop_back(); }
        out += line + "\n";
    }
    return out;
}

std::string fields_of(std::string_view text, std::string_view subject)
{
    const auto object = nlohmann::ordered_json::parse(text, nullptr, false);
    if (!object.is_object()) { return {}; }
    std::string out;
    for (const auto& [key, value] : object.items())
    {
        if (value.is_string() && value.get<std::string>() == subject) { continue; }
        std::string shown = value.is_string() ? value.get<std::string>()
                                              : value.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
        if (shown.empty() || shown == "null" || shown == "[]") { continue; }
        shown = printable(shown);
        const bool quote = value.is_string() && shown.find_first_of(" =\"") != std::string::npos;
        out += (out.empty() ? "" : " ") + printable(key) + "=" + (quote ? "\"" + shown + "\"" : shown);
    }
    return out;
}

} // namespace dstack::cli
