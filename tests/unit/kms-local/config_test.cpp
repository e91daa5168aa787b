#include "services/kms-local/config.hpp"
#include "tests/catch.hpp"

using namespace dstack::kms;

TEST_CASE("a short configuration gets the defaults")
{
    const auto config = parse_config("[kms]\nstate_dir = \"/s\"\ntee_host_key_file = \"/k\"\n");
    REQUIRE(config);
    CHECK(config->listen == "127.0.0.1");
    CHECK(config->port == 8443);
    CHECK(config->auth_url == "http://127.0.0.1:8001");
    CHECK(config->ip_addresses == std::vector<std::string>{"127.0.0.1", "10.0.2.2"});
    CHECK(config->bus_directory.empty());
}

TEST_CASE("a configuration that cannot work is refused")
{
    const std::string good = "[kms]\nstate_dir = \"/s\"\ntee_host_key_file = \"/k\"\n";
    REQUIRE(parse_config(good));
    for (const std::string bad : {"", "[kms]\nstate_dir = \"/s\"\n", "[kms]\ntee_host_key_file = \"/k\"\n"})
    {
        CHECK_FALSE(parse_config(bad));
    }
    for (const std::string line :
         {"port = 70000", "auth_url = \"127.0.0.1:8001\"", "dns_names = []", "prot = 1", "auth_timeout_ms = 0"})
    {
        INFO(line);
        CHECK_FALSE(parse_config(good + line + "\n"));
    }
}
