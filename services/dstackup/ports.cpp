#include "services/dstackup/ports.hpp"
#include "shared/process/fd.hpp"
#include <arpa/inet.h>
#include <cerrno>
#include <netinet/in.h>
#include <sys/socket.h>

namespace dstack::up
{

namespace
{
struct Probe
{
    process::Fd fd{};
    std::uint16_t port = 0;
};

Result<Probe> bind_loopback(std::uint16_t port)
{
    process::Fd fd{socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    if (!fd) { return errno_error("socket", errno); }
    const int yes = 1; // as servers do: connections of a former listener that linger are no obstacle
    setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port);
    auto* raw = reinterpret_cast<sockaddr*>(&address);
    socklen_t size = sizeof address;
    if (bind(fd.get(), raw, size) != 0) { return errno_error("bind 127.0.0.1:" + std::to_string(port), errno); }
    if (getsockname(fd.get(), raw, &size) != 0) { return errno_error("getsockname", errno); }
    return Probe{std::move(fd), ntohs(address.sin_port)};
}
} // namespace

Result<std::uint16_t> free_port()
{
    const auto probe = bind_loopback(0);
    if (!probe) { return probe.error(); }
    return probe->port;
}

Result<Done> check_port_free(std::uint16_t port, std::string_view flag)
{
    const auto probe = bind_loopback(port);
    if (probe) { return Done{}; }
    return Error{Errc::already_exists,
                 "port " + std::to_string(port) + " on 127.0.0.1 is taken: " + probe.error().message,
                 "choose another one with " + std::string{flag} + " N, or let " + std::string{flag} +
                     " 0 take a free one; "
                     "`ss -ltnp` shows who has it",
                 {}};
}

} // namespace dstack::up
