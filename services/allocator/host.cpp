#include "services/allocator/host.hpp"
#include "shared/process/fd.hpp"
#include "shared/state/files.hpp"
#include <cerrno>
#include <charconv>
#include <algorithm>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <unistd.h>

namespace dstack::allocator
{

namespace
{

/// VHOST_VSOCK_SET_GUEST_CID of <linux/vhost.h>, which C++ does not compile.
constexpr unsigned long set_guest_cid = _IOW(0xAF, 0x60, std::uint64_t);
constexpr std::size_t max_table = 64 * 1024 * 1024;
constexpr std::size_t max_small = 256 * 1024;

using process::Fd;

std::string text_of(const std::string& path, std::size_t limit)
{
    auto text = state::read_file(path, limit);
    return text ? std::move(*text) : std::string{};
}

/// Whether a VM on this host has the CID in the kernel; false also where vhost-vsock cannot be asked.
bool is_cid_taken(std::uint32_t cid)
{
    const Fd device{::open("/dev/vhost-vsock", O_RDWR | O_CLOEXEC)};
    if (device.get() < 0) { return false; }
    const std::uint64_t wide = cid;
    return ::ioctl(device.get(), set_guest_cid, &wide) != 0 && errno == EADDRINUSE;
}

/// errno of binding a socket there; 0 when it worked. It is closed at once. `beside`: as QEMU and other servers do, with
/// SO_REUSEADDR: connections that linger from a former listener are in nobody's way then.
int try_bind(const Resource& resource, bool beside)
{
    const bool v4 = resource.address->is_v4();
    const bool tcp = resource.protocol == "tcp";
    const Fd fd{::socket(v4 ? AF_INET : AF_INET6, (tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC, 0)};
    if (fd.get() < 0) { return errno; }
    const int on = 1;
    if (beside && ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0) { return errno; }
    const auto& bytes = resource.address->bytes();
    const auto port = htons(static_cast<std::uint16_t>(resource.value));
    if (v4)
    {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = port;
        std::copy(bytes.begin() + 12, bytes.end(), reinterpret_cast<std::uint8_t*>(&address.sin_addr));
        return ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ? 0 : errno;
    }
    sockaddr_in6 address{};
    address.sin6_family = AF_INET6;
    address.sin6_port = port;
    std::copy(bytes.begin(), bytes.end(), reinterpret_cast<std::uint8_t*>(&address.sin6_addr));
    return ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ? 0 : errno;
}

} // namespace

Kernel::Kernel(bool privileged_ports)
    : outgoing_(parse_port_range(text_of("/proc/sys/net/ipv4/ip_local_port_range", max_small))),
      set_aside_(parse_port_list(text_of("/proc/sys/net/ipv4/ip_local_reserved_ports", max_small)))
{
    constexpr std::uint32_t usual = 1024;
    const std::string first = text_of("/proc/sys/net/ipv4/ip_unprivileged_port_start", max_small);
    std::uint32_t from = 0;
    const bool read = std::from_chars(first.data(), first.data() + first.size(), from).ec == std::errc{};
    if (!privileged_ports) { unprivileged_from_ = read ? from : usual; }
}

bool Kernel::is_set_aside(std::uint16_t port)
{
    return std::any_of(set_aside_.begin(), set_aside_.end(), [&](const auto& range) { return port >= range.first && port <= range.second; });
}

Result<std::optional<std::string>> Kernel::holder(const Resource& resource)
{
    switch (resource.kind)
    {
    case Kind::cid: return guest_holder(resource);
    case Kind::port: return port_holder(resource);
    case Kind::vsock_port: break;
    }
    return vsock_holder(resource);
}

std::optional<std::string> Kernel::vsock_holder(const Resource& resource)
{
    if (auto claimed = guest_holder(resource)) { return claimed; }
    const Fd fd{::socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    if (fd.get() < 0) { return std::nullopt; } // a kernel without vsock has nobody there
    sockaddr_vm address{};
    address.svm_family = AF_VSOCK;
    address.svm_cid = VMADDR_CID_ANY;
    address.svm_port = resource.value;
    if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 || errno != EADDRINUSE) { return std::nullopt; }
    const auto uses = looker_.vsock(resource.value);
    return uses.empty() ? std::string{"a vsock socket of this host"} : uses.front().process.text();
}

Result<std::optional<std::string>> Kernel::port_holder(const Resource& resource)
{
    int failed = try_bind(resource, false);
    if (failed == EADDRINUSE && resource.protocol == "tcp")
    {
        failed = try_bind(resource, true);
        // Either what lingers, or a socket that was bound in the same way and may listen at any time.
        if (failed == 0) { return socket_owner(resource); }
    }
    switch (failed)
    {
    case 0:
        return std::optional<std::string>{};
    case EADDRINUSE:
        return std::optional{socket_owner(resource).value_or("a socket that the kernel does not show")};
    case EADDRNOTAVAIL:
    case EAFNOSUPPORT:
        return Error{Errc::failed_precondition,
                     resource.text() + ": this host has no such address",
                     "`ip address` lists those that it has",
                     {}};
    // A privileged port, and we are not: the tables tell.
    case EACCES:
    case EPERM:
        return socket_owner(resource);
    default:
        return errno_error("bind " + resource.text(), failed);
    }
}

std::optional<std::string> Kernel::socket_owner(const Resource& resource)
{
    for (const Use& use : looker_.port(resource.protocol, static_cast<std::uint16_t>(resource.value), true))
    {
        if (use.in_the_way_of(resource)) { return use.process.text(); }
    }
    return std::nullopt;
}

std::optional<std::string> Kernel::guest_holder(const Resource& resource)
{
    if (!guests_) { guests_ = looker_.guests(); }
    for (const Use& use : *guests_)
    {
        if (!use.in_the_way_of(resource)) { continue; }
        if (use.process.pid == 0) { return use.why; }
        return use.why == "cid of its guest" ? use.process.text() : use.why + ", " + use.process.text();
    }
    if (resource.kind == Kind::cid && is_cid_taken(resource.value)) { return "a VM that the kernel knows (vhost-vsock)"; }
    return std::nullopt;
}

} // namespace dstack::allocator
