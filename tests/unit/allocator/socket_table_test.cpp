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

TEST_CASE("ports that are set aside")
{
    using Ranges = std::vector<std::pair<std::uint16_t, std::uint16_t>>;
    CHECK(parse_port_list("8080,9000-9010\n") == Ranges{{8080, 8080}, {9000, 9010}});
    CHECK(parse_port_list("\n").empty());
    CHECK(parse_port_list("x,1-y,70000,5") == Ranges{{5, 5}});
}

TEST_CASE("sock_diag messages that are cut or lie")
{
    std::vector<Socket> out;
    CHECK(decode_inet_diag("", true, out));
    CHECK(decode_inet_diag("short", true, out));
    // a length beyond the end, and one below the header
    std::string lie(64, '\0');
    lie[0] = '\x7f';
    CHECK_FALSE(decode_inet_diag(lie, true, out));
    lie[0] = 4;
    CHECK_FALSE(decode_inet_diag(lie, true, out));
    // a message without a payload
    lie[0] = 16; // a header, and nothing else
    lie[4] = 20;
    decode_inet_diag(lie.substr(0, 20), true, out);
    CHECK(out.empty());
}

TEST_CASE("an IPv6 socket of its own leaves the IPv4 ports alone")
{
    Socket socket{*Address::parse("::")};
    socket.port = 80;
    CHECK(socket.in_the_way_of(*Address::parse("127.0.0.1"), 80));
    CHECK(socket.in_the_way_of(*Address::parse("::1"), 80));
    CHECK_FALSE(socket.in_the_way_of(*Address::parse("::1"), 81));
    socket.only_v6 = true;
    CHECK_FALSE(socket.in_the_way_of(*Address::parse("127.0.0.1"), 80));
    CHECK(socket.in_the_way_of(*Address::parse("::1"), 80));
}
