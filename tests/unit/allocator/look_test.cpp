#include "services/allocator/look.hpp"
#include "tests/catch.hpp"
#include "tests/unit/state/scratch.hpp"
#include <algorithm>
#include <arpa/inet.h>
#include <filesystem>
#include <fstream>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

using namespace dstack::allocator;
using namespace std::string_literals;
namespace fs = std::filesystem;

namespace
{

/// A /proc of our own making.
class FakeProc
{
  public:
    void process(long pid, const std::string& name, const std::string& command_line)
    {
        const std::string folder = scratch_ / std::to_string(pid);
        fs::create_directories(folder + "/fd");
        std::ofstream{folder + "/comm"} << name << "\n";
        std::ofstream{folder + "/cmdline", std::ios::binary} << command_line;
        std::ofstream{folder + "/cgroup"} << "0::/system.slice/" << name << ".service\n";
    }
    std::string operator/(const std::string& name) const { return scratch_ / name; }
    const std::string& path() const { return scratch_.path(); }

  private:
    Scratch scratch_;
};

const Use* find(const std::vector<Use>& uses, Kind kind, std::uint32_t value)
{
    for (const Use& use : uses)
    {
        if (use.resource.kind == kind && value >= use.resource.value && value <= use.last) { return &use; }
    }
    return nullptr;
}

int listener(int family, const char* address, std::uint16_t& port, bool only_v6 = false, bool listens = true)
{
    const int fd = ::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    REQUIRE(fd >= 0);
    const int on = 1;
    if (only_v6) { ::setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on); }
    if (!listens) { ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on); }
    sockaddr_in6 six{};
    sockaddr_in four{};
    six.sin6_family = AF_INET6;
    four.sin_family = AF_INET;
    six.sin6_port = four.sin_port = htons(port);
    ::inet_pton(family, address, family == AF_INET ? static_cast<void*>(&four.sin_addr) : static_cast<void*>(&six.sin6_addr));
    const sockaddr* where = family == AF_INET ? reinterpret_cast<const sockaddr*>(&four) : reinterpret_cast<const sockaddr*>(&six);
    REQUIRE(::bind(fd, where, family == AF_INET ? sizeof four : sizeof six) == 0);
    if (listens) { REQUIRE(::listen(fd, 1) == 0); }
    socklen_t size = sizeof six;
    REQUIRE(::getsockname(fd, reinterpret_cast<sockaddr*>(&six), &size) == 0);
    port = ntohs(six.sin6_port); // at the same place in both
    return fd;
}

} // namespace

TEST_CASE("guests, pools and processes that lie")
{
    FakeProc proc;
    proc.process(100, "qemu-system-x86", "qemu-system-x86_64\0-device\0vhost-vsock-pci,guest-cid=1777\0"s);
    proc.process(200, "dstack-vmm", "/usr/bin/dstack-vmm\0-c\0/etc/other.toml\0"s);
    fs::create_directories(proc / "200/root/etc");
    std::ofstream{proc / "200/root/etc/other.toml"} << "[cvm]\ncid_start = 4294960000\ncid_pool_size = 100000\n[host_api]\nport = 10001\n";
    // one that claims thousands, one whose files are directories, one with endless arguments, one that is no process
    std::string many = "liar";
    for (int cid = 5000; cid < 9000; ++cid) { many += std::string(1, '\0') + "guest-cid=" + std::to_string(cid); }
    proc.process(300, "liar", many);
    fs::create_directories(proc / "400/cmdline");
    proc.process(500, "long", std::string(4 * 1024 * 1024, 'x') + "guest-cid=1888");
    fs::create_directories(proc / "12abc");
    std::ofstream{proc / "600"} << "not a directory";

    Looker looker{proc.path()};
    auto uses = looker.guests();
    const Use* guest = find(uses, Kind::cid, 1777);
    REQUIRE(guest != nullptr);
    CHECK(guest->process.text() == "qemu-system-x86, pid 100 (qemu-system-x86.service)");
    const Use* pool = find(uses, Kind::cid, 4294967294);
    REQUIRE(pool != nullptr);
    CHECK(pool->last == 4294967294);
    CHECK(pool->why == "cid pool of dstack-vmm (/etc/other.toml)");
    CHECK(find(uses, Kind::cid, 1000) == nullptr);
    CHECK(find(uses, Kind::vsock_port, 10001) != nullptr);
    CHECK(find(uses, Kind::cid, 5000) != nullptr);
    CHECK(find(uses, Kind::cid, 5016) == nullptr);
    CHECK(find(uses, Kind::cid, 1888) == nullptr);

    // a process ends, another gets its pid
    fs::rename(proc / "100", proc / "gone");
    proc.process(100, "other", "other");
    uses = looker.guests();
    CHECK(find(uses, Kind::cid, 1777) == nullptr);
}

TEST_CASE("sockets and their processes")
{
    std::uint16_t four = 0;
    std::uint16_t six = 0;
    const int any = listener(AF_INET, "0.0.0.0", four);
    const int own = listener(AF_INET6, "::", six, true);
    std::uint16_t quiet = 0;
    const int bound = listener(AF_INET, "127.0.0.1", quiet, false, false);
    Looker looker;
    for (int twice = 0; twice < 2; ++twice) // the second look remembers
    {
        const auto uses = looker.all();
        const Use* found = nullptr;
        const Use* found_six = nullptr;
        for (const Use& use : uses)
        {
            if (use.resource.kind != Kind::port || use.resource.protocol != "tcp") { continue; }
            if (use.resource.value == four) { found = &use; }
            if (use.resource.value == six) { found_six = &use; }
        }
        REQUIRE(found != nullptr);
        CHECK(found->process.pid == ::getpid());
        CHECK(found->resource.text() == "tcp 0.0.0.0:" + std::to_string(four));
        CHECK(found->in_the_way_of({Kind::port, "tcp", Address::parse("127.0.0.1"), four}));
        REQUIRE(found_six != nullptr);
        CHECK(found_six->only_v6);
        CHECK_FALSE(found_six->in_the_way_of({Kind::port, "tcp", Address::parse("127.0.0.1"), six}));
        CHECK(found_six->in_the_way_of({Kind::port, "tcp", Address::parse("::1"), six}));
    }
    for (const int fd : {any, own, bound}) { ::close(fd); }
    const auto after = looker.all();
    CHECK(std::none_of(after.begin(), after.end(), [&](const Use& use) { return use.resource.value == four && use.process.pid == ::getpid(); }));
}

TEST_CASE("vsock listeners of the host")
{
    const int fd = ::socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) { return; } // a kernel without vsock
    sockaddr_vm address{};
    address.svm_family = AF_VSOCK;
    address.svm_cid = VMADDR_CID_ANY;
    address.svm_port = VMADDR_PORT_ANY;
    REQUIRE(::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(::listen(fd, 1) == 0);
    socklen_t size = sizeof address;
    REQUIRE(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0);
    Looker looker;
    const auto uses = looker.vsock(address.svm_port);
    // without the vsock_diag module the kernel does not say
    if (!uses.empty()) { CHECK(uses[0].process.pid == ::getpid()); }
    ::close(fd);
}
