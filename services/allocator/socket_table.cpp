#include "services/allocator/socket_table.hpp"
#include <algorithm>
#include <charconv>

namespace dstack::allocator
{

namespace
{

std::string_view take_word(std::string_view& line)
{
    const auto start = line.find_first_not_of(" \t");
    if (start == std::string_view::npos) { return line = {}; }
    const auto end = line.find_first_of(" \t", start);
    const std::string_view word = line.substr(start, end == std::string_view::npos ? end : end - start);
    line = end == std::string_view::npos ? std::string_view{} : line.substr(end);
    return word;
}

template <class T>
bool number(std::string_view text, T& out, int base)
{
    const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), out, base);
    return failed == std::errc{} && end == text.data() + text.size() && !text.empty();
}

/// The kernel prints each 32-bit word of the address in its own byte order, which is little-endian here.
std::optional<Address> kernel_address(std::string_view hex)
{
    std::array<std::uint8_t, 16> bytes{};
    if (hex.size() != 8 && hex.size() != 32) { return std::nullopt; }
    for (std::size_t word = 0; word < hex.size() / 8; ++word)
    {
        std::uint32_t value = 0;
        if (!number(hex.substr(word * 8, 8), value, 16)) { return std::nullopt; }
        for (std::size_t i = 0; i < 4; ++i) { bytes[word * 4 + i] = static_cast<std::uint8_t>(value >> (8 * i)); }
    }
    if (hex.size() == 8) { return Address::v4({bytes[0], bytes[1], bytes[2], bytes[3]}); }
    return Address::v6(bytes);
}

std::optional<Socket> parse_line(std::string_view line, bool tcp)
{
    take_word(line); // "12:"
    const std::string_view local = take_word(line);
    take_word(line); // remote
    const std::string_view state = take_word(line);
    for (int skipped = 0; skipped < 5; ++skipped) { take_word(line); } // queues, timer, retransmits, uid, timeout
    const std::string_view inode = take_word(line);
    const auto colon = local.find(':');
    if (colon == std::string_view::npos) { return std::nullopt; }
    const auto address = kernel_address(local.substr(0, colon));
    if (!address) { return std::nullopt; }
    Socket out{*address};
    if (!number(local.substr(colon + 1), out.port, 16) || !number(inode, out.inode, 10)) { return std::nullopt; }
    out.holds_port = !tcp || state == "0A";
    return out;
}

} // namespace

std::vector<Socket> parse_socket_table(std::string_view text, bool tcp)
{
    std::vector<Socket> out;
    bool heading = true;
    while (!text.empty())
    {
        const auto end = text.find('\n');
        const std::string_view line = text.substr(0, end);
        text = end == std::string_view::npos ? std::string_view{} : text.substr(end + 1);
        if (std::exchange(heading, false)) { continue; }
        if (const auto socket = parse_line(line, tcp)) { out.push_back(*socket); }
    }
    return out;
}

std::pair<std::uint16_t, std::uint16_t> parse_port_range(std::string_view text)
{
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) { text.remove_suffix(1); }
    std::pair<std::uint16_t, std::uint16_t> out{0, 0};
    const std::string_view first = take_word(text);
    if (!number(first, out.first, 10) || !number(take_word(text), out.second, 10)) { return {0, 0}; }
    return out;
}

std::vector<std::pair<std::uint16_t, std::uint16_t>> parse_port_list(std::string_view text)
{
    std::vector<std::pair<std::uint16_t, std::uint16_t>> out;
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) { text.remove_suffix(1); }
    while (!text.empty())
    {
        const std::string_view item = text.substr(0, text.find(','));
        text.remove_prefix(std::min(item.size() + 1, text.size()));
        const auto dash = item.find('-');
        std::pair<std::uint16_t, std::uint16_t> range{0, 0};
        if (!number(item.substr(0, dash), range.first, 10)) { continue; }
        range.second = range.first;
        if (dash != std::string_view::npos && !number(item.substr(dash + 1), range.second, 10)) { continue; }
        out.push_back(range);
    }
    return out;
}

std::optional<std::uint32_t> cid_of_command_line(std::string_view command_line)
{
    constexpr std::string_view key = "guest-cid=";
    const auto at = command_line.find(key);
    if (at == std::string_view::npos) { return std::nullopt; }
    std::string_view rest = command_line.substr(at + key.size());
    rest = rest.substr(0, rest.find_first_not_of("0123456789"));
    std::uint32_t cid = 0;
    return number(rest, cid, 10) ? std::optional{cid} : std::nullopt;
}

} // namespace dstack::allocator
