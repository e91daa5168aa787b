#include "services/allocator/config.hpp"
#include "tests/catch.hpp"

using dstack::allocator::parse_config;

TEST_CASE("the configuration of dstack-allocator")
{
    auto config = parse_config("[allocator]\nstate_dir = \"/s\"\n[bus]\ndirectory = \"/b\"\n");
    REQUIRE(config);
    CHECK(config->cid_first == 1000);
    CHECK(config->port_last == 19999);
    auto crossed =
        parse_config("[allocator]\nstate_dir = \"/s\"\nport_first = 500\nport_last = 400\n[bus]\ndirectory = \"/b\"\n");
    REQUIRE_FALSE(crossed);
    CHECK(crossed.error().message == "line 4, column 13: allocator.port_last: must not be below port_first");
    CHECK_FALSE(parse_config("[allocator]\nstate_dir = \"/s\"\n"));
    CHECK_FALSE(parse_config("[bus]\ndirectory = \"/b\"\n"));
    CHECK_FALSE(parse_config("[allocator]\nstate_dir = \"/s\"\ncid_first = 2\n[bus]\ndirectory = \"/b\"\n"));
    CHECK(config->leases.empty());
    auto all = parse_config("[allocator]\nstate_dir = \"/s\"\nleases = \"/h/leases.db\"\nprivileged_ports = true\n[quota]\nports_per_app = 3\n"
                            "[bus]\ndirectory = \"/b\"\n");
    REQUIRE(all);
    CHECK(all->leases == "/h/leases.db");
    CHECK(all->privileged_ports);
    CHECK(all->ports_per_app == 3);
    CHECK_FALSE(parse_config("[allocator]\nstate_dir = \"/s\"\nleases = \"here.db\"\n[bus]\ndirectory = \"/b\"\n"));
}
