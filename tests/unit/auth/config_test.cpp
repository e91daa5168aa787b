#include "services/auth/config.hpp"
#include "tests/catch.hpp"

using dstack::auth::parse_config;

TEST_CASE("the configuration of dstack-auth")
{
    auto config = parse_config("[auth]\npolicy_file = \"/p\"\nledger_dir = \"/l\"\n");
    REQUIRE(config);
    CHECK(config->listen == "127.0.0.1");
    CHECK(config->port == 8001);
    CHECK_FALSE(config->create_policy);
    CHECK(config->bus_directory.empty());
    auto full = parse_config(
        "[auth]\nlisten = \"::1\"\nport = 0\npolicy_file = \"/p\"\nledger_dir = \"/l\"\ncreate_policy = true\n"
        "request_timeout_ms = 500\n[bus]\ndirectory = \"/b\"\n");
    REQUIRE(full);
    CHECK(full->port == 0);
    CHECK(full->create_policy);
    CHECK(full->request_timeout.count() == 500);
    CHECK(full->bus_directory == "/b");
    CHECK(config->ledger_flush.count() == 0);
    const std::string head = "[auth]\npolicy_file = \"/p\"\nledger_dir = \"/l\"\nledger_flush = ";
    CHECK(parse_config(head + "\"each\"\n")->ledger_flush.count() == 0);
    CHECK(parse_config(head + "\"10ms\"\n")->ledger_flush.count() == 10);
    for (const char* wrong : {"\"\"", "\"0ms\"", "\"-1ms\"", "\"10\"", "\"10 ms\"", "\"2000ms\"", "\"ms\"", "10"})
    {
        CAPTURE(wrong);
        CHECK_FALSE(parse_config(head + wrong + "\n"));
    }
    CHECK_FALSE(parse_config("[auth]\nledger_dir = \"/l\"\n"));
    CHECK_FALSE(parse_config("[auth]\npolicy_file = \"/p\"\n"));
    CHECK_FALSE(parse_config("[auth]\npolicy_file = \"/p\"\nledger_dir = \"/l\"\npolcy = 1\n"));
}
