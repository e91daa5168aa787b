#pragma once
#include "services/allocator/plan.hpp"

namespace dstack::allocator
{

/// A socket of the kernel that may be in somebody's way.
struct Socket
{
    Address address;
    std::uint16_t port = 0;
    std::uint64_t inode = 0;
    bool holds_port = true; ///< a TCP socket that listens or only is bound, or any UDP one: nobody else can bind there
    bool only_v6 = false;   ///< IPV6_V6ONLY: "::" leaves the IPv4 ports alone
    bool connected = false; ///< a UDP socket with a peer: a client, though it holds its port
    bool in_the_way_of(const Address& wanted, std::uint32_t wanted_port) const;
};

/// One line each of proc(5) /proc/net/{tcp,tcp6,udp,udp6}, for kernels without sock_diag. Lines that cannot be understood
/// are left out: the bind probe has the last word.
std::vector<Socket> parse_socket_table(std::string_view text, bool tcp);

/// The messages of one read from a sock_diag(7) socket. False: that was the last of the dump, or an error.
bool decode_inet_diag(std::string_view bytes, bool tcp, std::vector<Socket>& out);

/// A vsock listener: CID and port that it is bound to.
struct VsockListener
{
    std::uint32_t cid = 0;
    std::uint32_t port = 0;
    std::uint64_t inode = 0;
};
bool decode_vsock_diag(std::string_view bytes, std::vector<VsockListener>& out);

/// "32768\t60999\n" of /proc/sys/net/ipv4/ip_local_port_range; {0, 0} when it is not understood.
std::pair<std::uint16_t, std::uint16_t> parse_port_range(std::string_view text);

/// "8080,9000-9010\n" of /proc/sys/net/ipv4/ip_local_reserved_ports; what is not understood is left out.
std::vector<std::pair<std::uint16_t, std::uint16_t>> parse_port_list(std::string_view text);

} // namespace dstack::allocator
