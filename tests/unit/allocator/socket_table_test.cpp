#include "services/allocator/socket_table.hpp"
#include "tests/catch.hpp"

using namespace dstack::allocator;

TEST_CASE("tables of the kernel are read")
{
    const auto tcp = parse_socket_table(
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 31337 1 "
        "0000000000000000 100 0 0 10 0\n"
        "   1: 0100007F:BB1C 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 31338 1 "
        "0000000000000000 20 4 30 10 -1\n"
        "   2: garbage\n"
        "   3: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 99 1 "
        "0000000000000000 100 0 0 10 0\n",
        true);
    REQUIRE(tcp.size() == 3);
    CHECK(tcp[0].address.text() == "127.0.0.1");
    CHECK(tcp[0].port == 8080);
    CHECK(tcp[0].inode == 31337);
    CHECK(tcp[0].holds_port);
    CHECK_FALSE(tcp[1].holds_port);
    CHECK(tcp[2].address.is_wildcard());
    CHECK(tcp[2].port == 22);

    const auto tcp6 =
        parse_socket_table("heading\n"
                           "   0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A "
                           "00000000:00000000 00:00000000 00000000 0 0 5 1\n"
                           "   1: 0000000000000000FFFF00000100007F:0051 00000000000000000000000000000000:0000 0A "
                           "00000000:00000000 00:00000000 00000000 0 0 6 1\n",
                           true);
    REQUIRE(tcp6.size() == 2);
    CHECK(tcp6[0].address.text() == "::1");
    CHECK(tcp6[1].address.text() == "127.0.0.1");

    const auto udp = parse_socket_table(
        "heading\n 10: 00000000:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 7 2\n", false);
    REQUIRE(udp.size() == 1);
    CHECK(udp[0].holds_port);
    CHECK(parse_socket_table("", true).empty());
}

TEST_CASE("the range of outgoing ports")
{
    CHECK(parse_port_range("32768\t60999\n") == std::pair<std::uint16_t, std::uint16_t>{32768, 60999});
    for (const char* text : {"", "32768", "a b", "1 99999"})
    {
        CHECK(parse_port_range(text) == std::pair<std::uint16_t, std::uint16_t>{0, 0});
    }
}

TEST_CASE("a CID in a command line")
{
    using namespace std::string_view_literals;
    CHECK(cid_of_command_line("qemu\0-device\0vhost-vsock-pci,guest-cid=1007\0-m\0"sv) == 1007u);
    CHECK(cid_of_command_line("qemu\0-device\0vhost-vsock-pci,guest-cid=8,id=x\0"sv) == 8u);
    CHECK(cid_of_command_line("qemu\0guest-cid=\0"sv) == std::nullopt);
    CHECK(cid_of_command_line("qemu\0guest-cid=99999999999\0"sv) == std::nullopt);
    CHECK(cid_of_command_line("") == std::nullopt);
}
