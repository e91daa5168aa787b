#include "services/auth/chain/endpoint.hpp"
#include "services/auth/config.hpp"
#include "tests/catch.hpp"

using namespace dstack::auth;
using namespace dstack::auth::chain;

namespace
{
dstack::Result<std::vector<Endpoint>> parse(std::vector<std::string> urls, bool plain = false) { return parse_endpoints(urls, plain); }
} // namespace

TEST_CASE("rpc urls in their parts")
{
    auto list = parse({"https://rpc.example/v3/secret?key=secret#x", "https://rpc.example/v3/other", "http://127.0.0.1:8545",
                       "http://[::1]:1/a", "https://user:pa%40ss@rpc.example:8443", "https://rpc.example?key=k"});
    REQUIRE(list);
    const auto& e = *list;
    CHECK((e[0].tls && e[0].host == "rpc.example" && e[0].port == 443 && e[0].target == "/v3/secret?key=secret"));
    CHECK(e[0].label == "rpc.example");
    CHECK(e[1].label == "rpc.example#2");
    CHECK((!e[2].tls && e[2].label == "127.0.0.1:8545" && e[2].port == 8545 && e[2].target == "/"));
    CHECK((e[3].host == "::1" && e[3].port == 1 && e[3].authority == "[::1]:1"));
    CHECK((e[4].authorization == "Basic dXNlcjpwYUBzcw==" && e[4].authority == "rpc.example:8443" && e[4].label == "rpc.example:8443"));
    CHECK((e[5].target == "/?key=k" && e[5].label == "rpc.example#3"));
    CHECK(url_at(e[0], "192.0.2.1") == "https://192.0.2.1:443/v3/secret?key=secret");
    CHECK(url_at(e[3], "::1") == "http://[::1]:1/a");
}

TEST_CASE("rpc urls that are refused, and nothing of them in the message")
{
    const std::string secret = "sEcReT";
    const std::vector<std::string> rows = {
        "",
        "wss://rpc.example/" + secret,
        "rpc.example/" + secret,
        "http://rpc.example/" + secret,
        "http://127.0.0.1.example/" + secret,
        "http://10.0.0.1/" + secret,
        "https:///" + secret,
        "https://rpc.example:0/" + secret,
        "https://rpc.example:65536/" + secret,
        "https://rpc.example:" + secret,
        "https://rpc.example:/" + secret,
        "https://rpc example/" + secret,
        "https://rpc.example/" + secret + "\r\nX: y",
        "https://[::1/" + secret,
        "https://[::1]x/" + secret,
        "https://" + secret + "@",
        "https://rpc\"example/" + secret,
        "https://rpc.example/" + std::string(3000, 's'),
    };
    for (const std::string& url : rows)
    {
        INFO(url.substr(0, 60));
        auto list = parse({url});
        REQUIRE_FALSE(list);
        CHECK(list.error().message.find(secret) == std::string::npos);
        CHECK(list.error().message.starts_with("rpc url 1: "));
    }
    CHECK(parse({"http://rpc.example/"}, true));
    CHECK_FALSE(parse({}));
    CHECK_FALSE(parse(std::vector<std::string>(17, "https://a.example")));
    auto twice = parse({"https://a.example/x", "https://b.example", "https://a.example/x"});
    REQUIRE_FALSE(twice);
    CHECK(twice.error().message.starts_with("rpc url 3: stands there twice"));
}

TEST_CASE("a file of urls")
{
    CHECK(lines_of("# mine\n\n  https://a.example/1 \r\n\thttps://b.example\n#https://c.example\nhttps://d.example") ==
          std::vector<std::string>{"https://a.example/1", "https://b.example", "https://d.example"});
    CHECK(lines_of("").empty());
    CHECK(lines_of("\n \n#\n").empty());
}

TEST_CASE("the configuration of the chain backend")
{
    const std::string head = "[auth]\nledger_dir = \"/l\"\n[backend]\ntype = \"chain\"\n";
    const std::string urls = "rpc_urls = [\"https://a.example/k\", \"https://b.example\"]\n";
    const std::string contract = "contract = \"0x" + std::string(40, 'A') + "\"\n";
    auto config = parse_config(head + urls + contract + "chain_id = 8453\n");
    REQUIRE(config);
    CHECK(config->backend == "chain");
    CHECK(config->chain.contract == std::string(40, 'a'));
    CHECK(config->chain.chain_id == 8453);
    CHECK_FALSE(config->chain.confirmations);
    CHECK(config->chain.quorum == 1);
    CHECK(config->chain.deadline.count() == 3000);
    auto full = parse_config(head + urls + contract +
                             "chain_id = 1\nconfirmations = 0\nquorum = 2\ndeadline_ms = 1000\nhedge_ms = 100\nmax_block_age_s = 60\n"
                             "probe_interval_s = 0\nallow_plain_http = true\nca_file = \"/c\"\n");
    REQUIRE(full);
    CHECK(full->chain.confirmations == 0U);
    CHECK(full->chain.quorum == 2);
    CHECK(full->chain.max_block_age.count() == 60);
    CHECK(full->chain.probe_interval.count() == 0);

    struct Row
    {
        std::string text;
        std::string complaint;
    };
    const std::vector<Row> rows = {
        {head + urls + contract, "chain_id"},
        {head + urls + contract + "chain_id = 0\n", "chain_id"},
        {head + urls + "chain_id = 1\n", "contract"},
        {head + urls + "chain_id = 1\ncontract = \"0x1234\"\n", "must be 40 hex digits, has 4"},
        {head + contract + "chain_id = 1\n", "rpc_urls"},
        {head + urls + "rpc_urls_file = \"/f\"\n" + contract + "chain_id = 1\n", "either here or in rpc_urls_file"},
        {head + urls + contract + "chain_id = 1\nquorum = 3\n", "more than there are rpc_urls"},
        {head + "rpc_urls = [\"http://a.example/k\"]\n" + contract + "chain_id = 1\n", "rpc url 1: http:// to another host"},
        {head + urls + contract + "chain_id = 1\ndeadline_ms = 20000\n", "request_timeout_ms"},
        {head + urls + contract + "chain_id = 1\ndeadline_ms = 400\n", "hedge_ms"},
        {head + urls + contract + "chain_id = 1\nconfirmation = 3\n", "unknown key"},
    };
    for (const Row& row : rows)
    {
        auto refused = parse_config(row.text);
        REQUIRE_FALSE(refused);
        INFO(refused.error().message);
        CHECK(refused.error().message.find(row.complaint) != std::string::npos);
        CHECK(refused.error().message.find("example/k") == std::string::npos);
    }
    CHECK(parse_config(head + "rpc_urls_file = \"rpc-urls\"\n" + contract + "chain_id = 1\nquorum = 5\n"));
}
