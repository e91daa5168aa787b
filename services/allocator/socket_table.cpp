#include "services/allocator/socket_table.hpp"
#include <algorithm>
#include <arpa/inet.h>
#include <charconv>
#include <cstring>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/vm_sockets_diag.h>
#include <sys/socket.h>

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

namespace
{

/// Calls `visit` with each message's type and payload; false at the end of the dump or at an error.
template <class F>
bool each_message(std::string_view bytes, F visit)
{
    while (bytes.size() >= sizeof(nlmsghdr))
    {
        nlmsghdr header{};
        std::memcpy(&header, bytes.data(), sizeof header);
        if (header.nlmsg_len < sizeof header || header.nlmsg_len > bytes.size()) { return false; }
        if (header.nlmsg_type == NLMSG_DONE || header.nlmsg_type == NLMSG_ERROR) { return false; }
        visit(bytes.substr(sizeof header, header.nlmsg_len - sizeof header));
        bytes.remove_prefix(std::min<std::size_t>(NLMSG_ALIGN(header.nlmsg_len), bytes.size()));
    }
    return true;
}

/// The attribute's first byte; 0 when it is not there.
std::uint8_t attribute_byte(std::string_view bytes, std::uint16_t type)
{
    while (bytes.size() >= sizeof(rtattr))
    {
        rtattr header{};
        std::memcpy(&header, bytes.data(), sizeof header);
        if (header.rta_len < sizeof header || header.rta_len > bytes.size()) { return 0; }
        if (header.rta_type == type && header.rta_len > sizeof header) { return static_cast<std::uint8_t>(bytes[sizeof header]); }
        bytes.remove_prefix(std::min<std::size_t>(RTA_ALIGN(header.rta_len), bytes.size()));
    }
    return 0;
}

constexpr std::uint8_t tcp_close = 7; ///< TCP_CLOSE: bound, but it does not listen
constexpr std::uint8_t tcp_listen = 10;
constexpr std::uint8_t tcp_bound = 13; ///< the same as tcp_close, since Linux 6.8
constexpr std::uint8_t tcp_established = 1;

} // namespace

bool Socket::in_the_way_of(const Address& wanted, std::uint32_t wanted_port) const
{
    if (!holds_port || port != wanted_port) { return false; }
    return address.overlaps(wanted) && !(only_v6 && wanted.is_v4());
}

bool decode_inet_diag(std::string_view bytes, bool tcp, std::vector<Socket>& out)
{
    return each_message(bytes,
                        [&](std::string_view payload)
                        {
                            inet_diag_msg message{};
                            if (payload.size() < sizeof message) { return; }
                            std::memcpy(&message, payload.data(), sizeof message);
                            std::array<std::uint8_t, 16> raw{};
                            std::memcpy(raw.data(), message.id.idiag_src, raw.size());
                            const bool v4 = message.idiag_family == AF_INET;
                            Socket socket{v4 ? Address::v4({raw[0], raw[1], raw[2], raw[3]}) : Address::v6(raw)};
                            socket.port = ntohs(message.id.idiag_sport);
                            socket.inode = message.idiag_inode;
                            socket.holds_port = socket.port != 0 && (!tcp || message.idiag_state == tcp_listen || message.idiag_state == tcp_close ||
                                                                     message.idiag_state == tcp_bound);
                            socket.connected = !tcp && message.idiag_state == tcp_established;
                            socket.only_v6 = !v4 && attribute_byte(payload.substr(NLMSG_ALIGN(sizeof message)), INET_DIAG_SKV6ONLY) != 0;
                            out.push_back(socket);
                        });
}

bool decode_vsock_diag(std::string_view bytes, std::vector<VsockListener>& out)
{
    return each_message(bytes,
                        [&](std::string_view payload)
                        {
                            vsock_diag_msg message{};
                            if (payload.size() < sizeof message) { return; }
                            std::memcpy(&message, payload.data(), sizeof message);
                            if (message.vdiag_state != tcp_listen) { return; }
                            out.push_back({message.vdiag_src_cid, message.vdiag_src_port, message.vdiag_ino});
                        });
}

} // namespace dstack::allocator
