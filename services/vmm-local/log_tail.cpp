#include "services/vmm-local/log_tail.hpp"
#include "services/vmm-local/decide.hpp"
#include "services/vmm-local/messages.hpp"
#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <unistd.h>
#include <vector>

namespace dstack::vmm
{

namespace
{
std::optional<bool> lenient_bool(std::string_view text)
{
    if (text.empty() || text == "on" || text == "yes" || text == "true") { return true; }
    if (text == "off" || text == "no" || text == "false") { return false; }
    return std::nullopt;
}

Error unprocessable(std::string text) { return Error{Errc::invalid_argument, std::move(text), {}, {}}; }

constexpr std::size_t longest_sequence = 64;
} // namespace

Result<LogRequest> parse_log_query(std::string_view query)
{
    const auto values = nlohmann::json::parse(query_to_json(query), nullptr, false);
    LogRequest out;
    bool has_id = false;
    for (const auto& [key, value] : values.items())
    {
        if (!value.is_string()) { continue; }
        const auto& text = *value.get_ptr<const std::string*>();
        if (key == "id")
        {
            out.id = text;
            has_id = true;
        }
        else if (key == "follow" || key == "ansi")
        {
            const auto flag = lenient_bool(text);
            if (!flag) { return unprocessable(key + ": not a boolean\n"); }
            (key == "follow" ? out.follow : out.ansi) = *flag;
        }
        else if (key == "lines")
        {
            const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out.lines);
            if (error != std::errc{} || end != text.data() + text.size()) { return unprocessable("lines: not a number\n"); }
        }
        else if (key == "ch") { out.channel = text; }
    }
    if (!has_id) { return unprocessable("id is missing\n"); }
    if (out.channel != "serial" && out.channel != "stdout" && out.channel != "stderr")
    {
        return Error{Errc::failed_precondition, "Unknown channel " + out.channel, {}, {}};
    }
    return out;
}

std::uint64_t tail_offset(int fd, std::uint64_t size, std::size_t lines)
{
    constexpr std::uint64_t furthest = 64ULL * 1024 * 1024;
    constexpr std::uint64_t piece = 64ULL * 1024;
    if (lines == 0) { return size; }
    const std::uint64_t stop = size > furthest ? size - furthest : 0;
    std::vector<char> buffer(piece);
    std::size_t seen = 0;
    std::uint64_t at = size;
    while (at > stop)
    {
        const std::uint64_t begin = at - std::min(piece, at - stop);
        const ssize_t n = pread(fd, buffer.data(), static_cast<std::size_t>(at - begin), static_cast<off_t>(begin));
        if (n <= 0) { return at; }
        for (auto i = static_cast<std::uint64_t>(n); i-- > 0;)
        {
            // The newline at the very end closes the last line, it begins no other.
            if (buffer[i] == '\n' && begin + i + 1 != size && ++seen == lines) { return begin + i + 1; }
        }
        at = begin;
    }
    return stop;
}

std::string LogText::feed(std::string_view bytes)
{
    std::string text = std::move(held_) + std::string{bytes};
    held_.clear();
    std::size_t keep = text.size();
    // An escape sequence that has begun and may go on.
    const auto escape = ansi_ ? std::string::npos : text.rfind('\x1b');
    if (escape != std::string::npos && text.size() - escape < longest_sequence && strip_ansi(std::string_view{text}.substr(escape)).empty() &&
        (text.size() - escape < 2 || (text[escape + 1] == '[' && !(text.size() - escape > 2 && text.back() >= '@' && text.back() <= '~')) ||
         text[escape + 1] == ']'))
    {
        keep = escape;
    }
    // The first bytes of a character of two to four bytes.
    for (std::size_t back = 1; back <= 3 && back <= keep; ++back)
    {
        const auto byte = static_cast<unsigned char>(text[keep - back]);
        if (byte < 0x80) { break; }
        if (byte >= 0xc0)
        {
            const std::size_t size = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2;
            if (size > back) { keep -= back; }
            break;
        }
    }
    held_ = text.substr(keep);
    text.resize(keep);
    std::string out = lossy_utf8(text);
    return ansi_ ? out : strip_ansi(out);
}

std::string LogText::rest()
{
    std::string out = lossy_utf8(held_);
    held_.clear();
    return ansi_ ? out : strip_ansi(out);
}

} // namespace dstack::vmm
