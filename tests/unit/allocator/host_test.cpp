#include "services/allocator/host.hpp"
#include "tests/catch.hpp"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

using namespace dstack::allocator;

namespace
{

/// A socket of this process on a port of the kernel's choice.
class Taken
{
  public:
    Taken(bool tcp, bool listens)
    {
        fd_ = ::socket(AF_INET, (tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC, 0);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        REQUIRE(::bind(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
        if (listens) { REQUIRE(::listen(fd_, 1) == 0); }
        socklen_t size = sizeof address;
        REQUIRE(::getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size) == 0);
        port = ntohs(address.sin_port);
    }
    Taken(const Taken&) = delete;
    Taken& operator=(const Taken&) = delete;
    ~Taken() { ::close(fd_); }
    std::uint16_t port = 0;

  private:
    int fd_ = -1;
};

Resource resource(const char* protocol, const char* address, std::uint32_t port)
{
    auto wish = make_wish(0, "port", protocol, address, port, "");
    REQUIRE(wish);
    return wish->resource;
}

} // namespace

TEST_CASE("the kernel's sockets are seen and their process is named")
{
    const std::string me = "pid " + std::to_string(::getpid());
    const Taken tcp{true, true};
    const Taken udp{false, false};
    Kernel kernel;
    for (const char* address : {"127.0.0.1", "0.0.0.0", "::"})
    {
        CAPTURE(address);
        auto holder = kernel.holder(resource("tcp", address, tcp.port));
        REQUIRE((holder && *holder));
        CHECK((*holder)->find(me) != std::string::npos);
    }
    auto datagram = kernel.holder(resource("udp", "127.0.0.1", udp.port));
    REQUIRE((datagram && *datagram));
    CHECK((*datagram)->find(me) != std::string::npos);
    auto elsewhere = kernel.holder(resource("tcp", "127.0.0.2", tcp.port));
    REQUIRE(elsewhere);
    CHECK_FALSE(*elsewhere);
}

TEST_CASE("a socket that does not listen yet is in the way too")
{
    const Taken bound{true, false};
    Kernel kernel;
    auto holder = kernel.holder(resource("tcp", "127.0.0.1", bound.port));
    REQUIRE((holder && *holder));
}

TEST_CASE("a port that was given back is free at once")
{
    std::uint16_t port = 0;
    {
        const Taken tcp{true, true};
        port = tcp.port;
    }
    Kernel kernel;
    auto holder = kernel.holder(resource("tcp", "127.0.0.1", port));
    REQUIRE(holder);
    CHECK_FALSE(*holder);
}

TEST_CASE("an address of another host is refused")
{
    Kernel kernel;
    auto holder = kernel.holder(resource("tcp", "192.0.2.1", 18000));
    REQUIRE_FALSE(holder);
    CHECK(holder.error().code == dstack::Errc::failed_precondition);
    CHECK(holder.error().message == "tcp 192.0.2.1:18000: this host has no such address");
}

TEST_CASE("the range of outgoing ports is the kernel's")
{
    Kernel kernel;
    CHECK_FALSE(kernel.is_ephemeral(80));
    const Taken any{false, false};
    CHECK(kernel.is_ephemeral(any.port));
}

TEST_CASE("a socket that is bound for reuse and does not listen yet")
{
    // SO_REUSEADDR: another may bind beside it, and then one of the two cannot listen
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int on = 1;
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    socklen_t size = sizeof address;
    REQUIRE(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0);
    Kernel kernel;
    auto holder = kernel.holder(resource("tcp", "127.0.0.1", ntohs(address.sin_port)));
    REQUIRE(holder);
    if (!*holder) { WARN("this kernel does not show sockets that are only bound (Linux before 6.8)"); }
    ::close(fd);
}

TEST_CASE("privileged ports and the kernel's ranges")
{
    Kernel strict;
    CHECK(strict.is_privileged(1) == strict.is_privileged(80)); // 0 or 1024, as the kernel is set
    CHECK_FALSE(strict.is_privileged(18000));
    Kernel open{true};
    CHECK_FALSE(open.is_privileged(80));
}
