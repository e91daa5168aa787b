#include "services/allocator/process_facts.hpp"
#include "tests/catch.hpp"

using namespace dstack::allocator;
using namespace std::string_view_literals;

TEST_CASE("CIDs in a command line")
{
    using Cids = std::vector<std::uint32_t>;
    CHECK(cids_of_command_line("qemu\0-device\0vhost-vsock-pci,guest-cid=1007\0-m\0"sv) == Cids{1007});
    CHECK(cids_of_command_line("qemu\0-device\0vhost-vsock-pci,guest-cid=8,id=x\0guest-cid=9\0"sv) == Cids{8, 9});
    CHECK(cids_of_command_line("qemu guest-cid=4294967294"sv) == Cids{4294967294});
    for (const std::string_view text : {"qemu\0guest-cid=\0"sv, "guest-cid=99999999999"sv, "guest-cid=4294967295"sv, "guest-cid=2"sv, "guest-cid=12x"sv,
                                        "guest-cid=-5"sv, ""sv})
    {
        CAPTURE(text);
        CHECK(cids_of_command_line(text).empty());
    }
}

TEST_CASE("ports that QEMU forwards")
{
    const auto found = forwards_of_command_line("qemu\0-netdev\0user,id=n,hostfwd=tcp:127.0.0.1:18000-:80,hostfwd=udp::53-:53\0hostfwd=tcp:[::1]:8443-:443\0"sv);
    REQUIRE(found.size() == 3);
    CHECK(found[0].text() == "tcp 127.0.0.1:18000");
    CHECK(found[1].text() == "udp 0.0.0.0:53");
    CHECK(found[2].text() == "tcp [::1]:8443");
    for (const std::string_view text : {"hostfwd="sv, "hostfwd=tcp:"sv, "hostfwd=tcp:1.2.3.4:99999-:1"sv, "hostfwd=sctp::1-:1"sv, "hostfwd=tcp:nowhere:1-:1"sv,
                                        "hostfwd=tcp::0-:1"sv, "hostfwd=tcp::-:1"sv})
    {
        CAPTURE(text);
        CHECK(forwards_of_command_line(text).empty());
    }
}

TEST_CASE("the unit of a control group")
{
    CHECK(unit_of_cgroup("0::/system.slice/nginx.service\n") == "nginx.service");
    CHECK(unit_of_cgroup("0::/system.slice/dstack-vm-1.service/payload\n") == "dstack-vm-1.service");
    CHECK(unit_of_cgroup("12:cpu:/x\n1:name=systemd:/user.slice/user-0.slice/session-3.scope\n0::/y\n") == "session-3.scope");
    CHECK(unit_of_cgroup("4:memory:/docker/abc\n0::/docker/abc\n") == "/docker/abc");
    CHECK(unit_of_cgroup("0::/\n").empty());
    CHECK(unit_of_cgroup("garbage").empty());
    CHECK(unit_of_cgroup("0::/x\x1b[2J.service\n") == "x?[2J.service");
}

TEST_CASE("upstream's VMM and its configuration")
{
    CHECK(program_of_command_line("/usr/bin/dstack-vmm\0-c\0x\0"sv) == "dstack-vmm");
    CHECK(config_of_command_line("dstack-vmm\0-c\0/etc/a.toml\0"sv) == "/etc/a.toml");
    CHECK(config_of_command_line("dstack-vmm\0--config=/etc/a.toml\0"sv) == "/etc/a.toml");
    CHECK(config_of_command_line("dstack-vmm\0run\0"sv).empty());
    CHECK(config_of_command_line("dstack-vmm\0-c"sv).empty());

    const VmmConfig usual = parse_vmm_config({});
    CHECK(usual.cid_start == 1000);
    CHECK(usual.cid_last() == 1999);
    CHECK(usual.host_api_port == 10000);
    const VmmConfig later = parse_vmm_config({"[cvm]\ncid_start = 3000\ncid_pool_size = 10\n", "[cvm]\ncid_pool_size = 20\n[host_api]\naddress = \"vsock:2\"\nport = 10001\n"});
    CHECK(later.cid_start == 3000);
    CHECK(later.cid_last() == 3019);
    CHECK(later.host_api_port == 10001);
    // at the edge of 32 bits, and beyond
    CHECK(parse_vmm_config({"[cvm]\ncid_start = 4294967290\ncid_pool_size = 1000\n"}).cid_last() == 4294967294);
    CHECK(parse_vmm_config({"[cvm]\ncid_start = 99999999999\n"}).cid_start == 1000);
    CHECK(parse_vmm_config({"[cvm]\ncid_start = -1\n"}).cid_start == 1000);
    CHECK(parse_vmm_config({"this is = no toml ["}).cid_start == 1000);
    CHECK(parse_vmm_config({"[cvm]\ncid_start = 5\ncid_pool_size = 0\n"}).cid_last() == 5);
}

TEST_CASE("libvirt domains with a static CID")
{
    using Cids = std::vector<std::uint32_t>;
    CHECK(cids_of_libvirt_domain("<domain><devices><vsock model='virtio'><cid auto='no' address='1003'/></vsock></devices></domain>") == Cids{1003});
    CHECK(cids_of_libvirt_domain("<vsock><cid auto='yes'/></vsock>").empty());
    CHECK(cids_of_libvirt_domain("<cid address=").empty());
    CHECK(cids_of_libvirt_domain("<cid address='99999999999'/>").empty());
}

TEST_CASE("what others wrote is fit for a terminal")
{
    CHECK(printable_command("a\0b\x1b[31m\0"sv, 100) == "a b?[31m");
    CHECK(printable_command("abcdef"sv, 3) == "abc");
}
