#pragma once
#include "services/allocator/plan.hpp"

namespace dstack::allocator
{

/// One line of /proc/net/{tcp,tcp6,udp,udp6}.
struct Socket
{
    Address address;
    std::uint16_t port = 0;
    std::uint64_t inode = 0;
    bool holds_port = true; ///< a listening TCP socket or any UDP one: nobody else can bind there
};

/// proc(5) /proc/net/tcp. Lines that cannot be understood are left out: the bind probe has the last word.
std::vector<Socket> parse_socket_table(std::string_view text, bool tcp);

/// "32768\t60999\n" of /proc/sys/net/ipv4/ip_local_port_range; {0, 0} when it is not understood.
std::pair<std::uint16_t, std::uint16_t> parse_port_range(std::string_view text);

/// "8080,9000-9010\n" of /proc/sys/net/ipv4/ip_local_reserved_ports; what is not understood is left out.
std::vector<std::pair<std::uint16_t, std::uint16_t>> parse_port_list(std::string_view text);

/// The CID in a QEMU command line ("guest-cid=1000"), arguments separated by NUL as in /proc/PID/cmdline.
std::optional<std::uint32_t> cid_of_command_line(std::string_view command_line);

} // namespace dstack::allocator
