#include "services/allocator/host.hpp"
#include "shared/state/files.hpp"
#include <cerrno>
#include <charconv>
#include <algorithm>
#include <dirent.h>
#include <fcntl.h>
#include <memory>
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

class Fd
{
  public:
    explicit Fd(int fd) : fd_(fd) {}
    Fd(const Fd&) = delete;
    Fd& operator=(const Fd&) = delete;
    ~Fd()
    {
        if (fd_ >= 0) { ::close(fd_); }
    }
    int get() const { return fd_; }

  private:
    int fd_;
};

struct CloseDir
{
    void operator()(DIR* dir) const { ::closedir(dir); }
};
using Dir = std::unique_ptr<DIR, CloseDir>;

std::string text_of(const std::string& path, std::size_t limit)
{
    auto text = state::read_file(path, limit);
    return text ? std::move(*text) : std::string{};
}

/// Runs `visit(pid)` for every process that is visible, until it gives true.
template <class F>
bool any_process(F visit)
{
    const Dir proc{::opendir("/proc")};
    if (!proc) { return false; }
    while (const dirent* entry = ::readdir(proc.get()))
    {
        const std::string_view name = entry->d_name;
        long pid = 0;
        const auto [end, failed] = std::from_chars(name.data(), name.data() + name.size(), pid);
        if (failed == std::errc{} && end == name.data() + name.size() && visit(pid)) { return true; }
    }
    return false;
}

std::string process_text(long pid)
{
    std::string name = text_of("/proc/" + std::to_string(pid) + "/comm", max_small);
    std::string out;
    for (const char c : name.substr(0, 32))
    {
        if (c >= 0x20 && c < 0x7f) { out += c; }
    }
    return (out.empty() ? "process" : out) + ", pid " + std::to_string(pid);
}

bool has_socket(long pid, const std::string& link)
{
    const std::string directory = "/proc/" + std::to_string(pid) + "/fd";
    const Dir fds{::opendir(directory.c_str())};
    if (!fds) { return false; }
    std::array<char, 64> target{};
    while (const dirent* entry = ::readdir(fds.get()))
    {
        const ssize_t length = ::readlinkat(::dirfd(fds.get()), entry->d_name, target.data(), target.size());
        if (length > 0 && std::string_view{target.data(), static_cast<std::size_t>(length)} == link) { return true; }
    }
    return false;
}

std::string inode_owner(std::uint64_t inode)
{
    std::string out = "a process that this user cannot see (as root, `ss -tulnp` names it)";
    const std::string link = "socket:[" + std::to_string(inode) + "]";
    any_process(
        [&](long pid)
        {
            if (!has_socket(pid, link)) { return false; }
            out = process_text(pid);
            return true;
        });
    return out;
}

std::map<std::uint32_t, std::string> guest_cids()
{
    std::map<std::uint32_t, std::string> out;
    any_process(
        [&](long pid)
        {
            const auto cid = cid_of_command_line(text_of("/proc/" + std::to_string(pid) + "/cmdline", max_small));
            if (cid) { out.emplace(*cid, process_text(pid)); }
            return false;
        });
    return out;
}

/// Whether a VM on this host has the CID in the kernel; false also where vhost-vsock cannot be asked.
bool is_cid_taken(std::uint32_t cid)
{
    const Fd device{::open("/dev/vhost-vsock", O_RDWR | O_CLOEXEC)};
    if (device.get() < 0) { return false; }
    const std::uint64_t wide = cid;
    return ::ioctl(device.get(), set_guest_cid, &wide) != 0 && errno == EADDRINUSE;
}

/// errno of binding a socket there; 0 when it worked. It is closed at once.
int try_bind(const Resource& resource)
{
    const bool v4 = resource.address->is_v4();
    const bool tcp = resource.protocol == "tcp";
    const Fd fd{::socket(v4 ? AF_INET : AF_INET6, (tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC, 0)};
    if (fd.get() < 0) { return errno; }
    const int on = 1;
    // As QEMU and other servers do: connections that linger from a former listener are in nobody's way.
    if (tcp && ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0) { return errno; }
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

void Kernel::begin() { guest_cids_.reset(); }

bool Kernel::is_set_aside(std::uint16_t port)
{
    return std::any_of(set_aside_.begin(), set_aside_.end(), [&](const auto& range) { return port >= range.first && port <= range.second; });
}

Result<std::optional<std::string>> Kernel::holder(const Resource& resource)
{
    switch (resource.kind)
    {
    case Kind::cid: return cid_holder(resource.value);
    case Kind::port: return port_holder(resource);
    case Kind::vsock_port: break;
    }
    return vsock_holder(resource.value);
}

std::optional<std::string> Kernel::vsock_holder(std::uint32_t port)
{
    const Fd fd{::socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    if (fd.get() < 0) { return std::nullopt; } // a kernel without vsock has nobody there
    sockaddr_vm address{};
    address.svm_family = AF_VSOCK;
    address.svm_cid = VMADDR_CID_ANY;
    address.svm_port = port;
    const bool taken = ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 && errno == EADDRINUSE;
    return taken ? std::optional<std::string>{"a vsock listener of this host"} : std::nullopt;
}

Result<std::optional<std::string>> Kernel::port_holder(const Resource& resource)
{
    const int failed = try_bind(resource);
    switch (failed)
    {
    case 0:
        return std::optional<std::string>{};
    case EADDRINUSE:
        return std::optional{socket_owner(resource).value_or("a socket that /proc/net does not show")};
    case EADDRNOTAVAIL:
    case EAFNOSUPPORT:
        return Error{Errc::failed_precondition,
                     resource.text() + ": this host has no such address",
                     "`ip address` lists those that it has",
                     {}};
    // A privileged port, and we are not: the tables tell, though not of sockets that do not listen yet.
    case EACCES:
    case EPERM:
        return socket_owner(resource);
    default:
        return errno_error("bind " + resource.text(), failed);
    }
}

std::optional<std::string> Kernel::socket_owner(const Resource& resource)
{
    const bool tcp = resource.protocol == "tcp";
    for (const char* suffix : {"", "6"})
    {
        const std::string table = text_of("/proc/net/" + resource.protocol + suffix, max_table);
        for (const Socket& socket : parse_socket_table(table, tcp))
        {
            const bool in_the_way =
                socket.holds_port && socket.port == resource.value && socket.address.overlaps(*resource.address);
            if (in_the_way) { return inode_owner(socket.inode); }
        }
    }
    return std::nullopt;
}

std::optional<std::string> Kernel::cid_holder(std::uint32_t cid)
{
    if (!guest_cids_) { guest_cids_ = guest_cids(); }
    const auto found = guest_cids_->find(cid);
    if (found != guest_cids_->end()) { return found->second; }
    if (is_cid_taken(cid)) { return "a VM that the kernel knows (vhost-vsock)"; }
    return std::nullopt;
}

} // namespace dstack::allocator
