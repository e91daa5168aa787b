#include "services/logs/lines.hpp"
#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <ctime>

namespace dstack::logs
{

namespace
{

void append_number(std::string& out, std::uint64_t value)
{
    std::array<char, 24> digits{};
    out.append(digits.data(), std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr);
}

std::optional<std::uint64_t> number(std::string_view text)
{
    std::uint64_t value = 0;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
    if (text.empty() || result.ec != std::errc{} || result.ptr != text.data() + text.size()) { return std::nullopt; }
    return value;
}

/// Takes the text up to the next tab, and the tab.
std::optional<std::string_view> field(std::string_view& rest)
{
    const auto tab = rest.find('\t');
    if (tab == std::string_view::npos) { return std::nullopt; }
    const auto text = rest.substr(0, tab);
    rest.remove_prefix(tab + 1);
    return text;
}

std::optional<std::uint64_t> number_field(std::string_view& rest)
{
    const auto text = field(rest);
    return text ? number(*text) : std::nullopt;
}

/// Bytes of the UTF-8 character at the front; 0 when it is none (RFC 3629).
std::size_t utf8_length(std::string_view s)
{
    const auto at = [&](std::size_t i) { return static_cast<unsigned char>(s[i]); };
    const auto tail = [&](std::size_t i, unsigned low = 0x80, unsigned high = 0xBF)
    { return i < s.size() && at(i) >= low && at(i) <= high; };
    const unsigned first = at(0);
    if (first < 0x80) { return 1; }
    if (first >= 0xC2 && first <= 0xDF) { return tail(1) ? 2 : 0; }
    if (first >= 0xE0 && first <= 0xEF)
    {
        const bool ok = tail(1, first == 0xE0 ? 0xA0 : 0x80, first == 0xED ? 0x9F : 0xBF) && tail(2);
        return ok ? 3 : 0;
    }
    if (first >= 0xF0 && first <= 0xF4)
    {
        const bool ok = tail(1, first == 0xF0 ? 0x90 : 0x80, first == 0xF4 ? 0x8F : 0xBF) && tail(2) && tail(3);
        return ok ? 4 : 0;
    }
    return 0;
}

} // namespace

std::uint64_t head_hash(std::string_view bytes)
{
    std::uint64_t hash = 14695981039346656037ULL;
    for (const char c : bytes)
    {
        hash ^= static_cast<unsigned char>(c);
        hash *= 1099511628211ULL;
    }
    return hash;
}

std::string_view to_string(Channel channel)
{
    switch (channel)
    {
        case Channel::serial: return "serial";
        case Channel::service: return "service";
        case Channel::gap: return "gap";
    }
    return "";
}

Split split(std::string_view bytes, bool all)
{
    Split out;
    while (out.consumed < bytes.size())
    {
        const std::string_view rest = bytes.substr(out.consumed);
        const auto newline = rest.find('\n');
        if (newline == std::string_view::npos && rest.size() < max_line_bytes && !all) { break; }
        const std::size_t size = std::min({newline, rest.size(), max_line_bytes});
        std::string_view line = rest.substr(0, size);
        if (newline == size && line.ends_with('\r')) { line.remove_suffix(1); }
        out.lines.push_back(line);
        out.consumed += size + (newline == size ? 1 : 0);
    }
    return out;
}

void encode(std::string& out, const Line& line)
{
    append_number(out, line.sequence);
    out.push_back('\t');
    append_number(out, line.time_ms);
    out.push_back('\t');
    out.append(to_string(line.channel));
    out.push_back('\t');
    out.append(line.text);
    out.push_back('\n');
}

void encode(std::string& out, const Position& position)
{
    out.push_back('@');
    for (const auto value : {position.device, position.inode, position.offset, position.head_size, position.head_hash})
    {
        out.push_back('\t');
        append_number(out, value);
    }
    out.push_back('\n');
}

std::optional<Line> decode_line(std::string_view record)
{
    Line line;
    const auto sequence = number_field(record);
    const auto time = number_field(record);
    const auto channel = field(record);
    if (!sequence || !time || !channel) { return std::nullopt; }
    line.sequence = *sequence;
    line.time_ms = *time;
    if (*channel == "serial") { line.channel = Channel::serial; }
    else if (*channel == "service") { line.channel = Channel::service; }
    else if (*channel == "gap") { line.channel = Channel::gap; }
    else { return std::nullopt; }
    line.text = record;
    return line;
}

std::optional<Position> decode_position(std::string_view record)
{
    if (!record.starts_with("@\t")) { return std::nullopt; }
    record.remove_prefix(2);
    Position out;
    for (auto* value : {&out.device, &out.inode, &out.offset, &out.head_size})
    {
        const auto got = number_field(record);
        if (!got) { return std::nullopt; }
        *value = *got;
    }
    const auto last = number(record);
    if (!last) { return std::nullopt; }
    out.head_hash = *last;
    return out;
}

Recovered recover(std::string_view segment)
{
    Recovered out;
    std::uint64_t last_line = 0;
    std::size_t at = 0;
    while (at < segment.size())
    {
        const auto newline = segment.find('\n', at);
        if (newline == std::string_view::npos) { break; }
        const std::string_view record = segment.substr(at, newline - at);
        at = newline + 1;
        if (const auto position = decode_position(record))
        {
            out.valid_bytes = at;
            out.position = position;
            out.last_sequence = last_line;
        }
        else if (const auto line = decode_line(record)) { last_line = line->sequence; }
        else { break; }
    }
    return out;
}

std::string segment_name(std::uint64_t first_sequence)
{
    std::array<char, 32> text{};
    const int size = std::snprintf(text.data(), text.size(), "%020llu.log", static_cast<unsigned long long>(first_sequence));
    return {text.data(), static_cast<std::size_t>(size)};
}

std::optional<std::uint64_t> segment_first(std::string_view file_name)
{
    if (file_name.size() != 24 || !file_name.ends_with(".log")) { return std::nullopt; }
    return number(file_name.substr(0, 20));
}

bool is_source_name(std::string_view name)
{
    const auto good = [](char c)
    { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.'; };
    return !name.empty() && name.size() <= 64 && name.front() != '.' && std::all_of(name.begin(), name.end(), good);
}

bool is_inside(std::string_view root, std::string_view path)
{
    while (root.ends_with('/')) { root.remove_suffix(1); }
    if (!path.starts_with('/') || !path.starts_with(root) || path.size() <= root.size() + 1 || path[root.size()] != '/')
    {
        return false;
    }
    std::string_view rest = path.substr(root.size() + 1);
    while (true)
    {
        const auto slash = rest.find('/');
        const auto part = rest.substr(0, slash);
        if (part.empty() || part == "." || part == ".." || part.find('\0') != std::string_view::npos) { return false; }
        if (slash == std::string_view::npos) { return true; }
        rest.remove_prefix(slash + 1);
    }
}

std::string rfc3339(std::uint64_t unix_ms)
{
    const auto seconds = static_cast<std::time_t>(unix_ms / 1000);
    std::tm parts{};
    gmtime_r(&seconds, &parts);
    std::array<char, 64> text{};
    const auto size = std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%S", &parts);
    std::array<char, 8> ms{};
    std::snprintf(ms.data(), ms.size(), ".%03uZ", static_cast<unsigned>(unix_ms % 1000));
    return std::string{text.data(), size} + ms.data();
}

std::string valid_utf8(std::string_view bytes)
{
    std::string out;
    out.reserve(bytes.size());
    while (!bytes.empty())
    {
        const std::size_t length = utf8_length(bytes);
        if (length == 0) { out.append("\xEF\xBF\xBD"); }
        else { out.append(bytes.substr(0, length)); }
        bytes.remove_prefix(length == 0 ? 1 : length);
    }
    return out;
}

std::size_t json_size(std::string_view text)
{
    std::size_t size = 0;
    for (const char c : text)
    {
        const auto byte = static_cast<unsigned char>(c);
        const bool escaped = c == '"' || c == '\\';
        const bool replaceable = byte >= 0x80; // no UTF-8: U+FFFD takes three
        size += byte < 0x20 || byte == 0x7F ? 6 : replaceable ? 3 : escaped ? 2 : 1;
    }
    return size;
}

std::string gap_text(std::uint64_t from, std::uint64_t to, std::uint64_t bytes, std::string_view reason)
{
    std::string out = "lost ";
    if (from != to)
    {
        out += "lines " + std::to_string(from) + " to " + std::to_string(to);
    }
    else { out += bytes == 0 ? "an unknown number of bytes" : std::to_string(bytes) + " bytes"; }
    out += ": ";
    out += reason;
    return out;
}

} // namespace dstack::logs
