#include "services/auth/chain/ruling.hpp"
#include "tests/catch.hpp"
#include <nlohmann/json.hpp>

using namespace dstack::auth;
using namespace dstack::auth::chain;
using namespace std::chrono_literals;

namespace
{
const Clock::time_point now{1000h};

struct World
{
    Settings settings{};
    std::vector<Endpoint> endpoints{};
    std::vector<EndpointHealth> health{};
    World()
    {
        settings.contract = std::string(40, 'c');
        settings.chain_id = 5;
        const std::vector<std::string> urls{"https://a.example/SECRET?k=SECRET", "https://u:SECRET@b.example:8443/", "http://127.0.0.1:1/SECRET"};
        endpoints = *parse_endpoints(urls, false);
        health.resize(endpoints.size());
    }
    Knowledge known() const { return {settings, endpoints, health, now}; }
};

Finding::Said said(std::size_t endpoint, bool allowed, std::string reason = {}, std::string gateway = "gw")
{
    Finding::Said out;
    out.endpoint = endpoint;
    out.answer.allowed = allowed;
    out.answer.reason = std::move(reason);
    out.answer.gateway_app_id = std::move(gateway);
    out.answer.block = Block{77, std::string(64, 'b'), 1};
    return out;
}
} // namespace

TEST_CASE("findings as verdicts")
{
    World world;
    Finding finding;
    finding.kind = Finding::Kind::answered;
    finding.answers = {said(0, true), said(2, true)};
    Verdict verdict = verdict_of(Kind::app, finding, world.known());
    CHECK(verdict.allowed);
    CHECK(verdict.reason.empty());
    CHECK(verdict.rule == "contract");
    REQUIRE(verdict.rules.size() == 1);
    CHECK(verdict.rules[0].pass);
    CHECK(verdict.rules[0].expected == "isAppAllowed of 0x" + std::string(40, 'c') + " on chain 5");
    CHECK(verdict.rules[0].got == "true at block 77 0x" + std::string(64, 'b') + ", from a.example, 127.0.0.1:1");

    finding.answers = {said(1, false, "App not registered")};
    verdict = verdict_of(Kind::kms, finding, world.known());
    CHECK_FALSE(verdict.allowed);
    CHECK(verdict.rule == "contract");
    CHECK(verdict.reason.starts_with("App not registered (rule contract: isKmsAllowed of 0x"));
    CHECK_FALSE(verdict.rules.at(0).pass);

    finding.kind = Finding::Kind::disagreed;
    finding.answers = {said(0, true), said(1, false, "App not registered")};
    verdict = verdict_of(Kind::app, finding, world.known());
    CHECK_FALSE(verdict.allowed);
    CHECK(verdict.rule == "chain");
    CHECK(verdict.reason == "rpc endpoints disagree: a.example says allowed, gateway gw at block 77 (0xbbbbbbbbbbbbbbbb...); "
                            "b.example:8443 says denied, App not registered at block 77 (0xbbbbbbbbbbbbbbbb...)");

    finding = {};
    finding.kind = Finding::Kind::wrong_chain;
    finding.failures = {{1, {Fault::timeout, "no answer", {}}}, {0, {Fault::wrong_chain, "is on chain 1, not on 5", {}}}};
    verdict = verdict_of(Kind::app, finding, world.known());
    CHECK_FALSE(verdict.allowed);
    CHECK(verdict.reason == "a.example: rpc_wrong_chain (is on chain 1, not on 5)");

    finding = {};
    note_failure(world.health[2], {Fault::rate_limited, "HTTP 429", 9s}, now, 0.0);
    finding.failures = {{0, {Fault::timeout, "no answer", {}}}, {1, {Fault::server_error, "HTTP 502", {}}}};
    verdict = verdict_of(Kind::app, finding, world.known());
    CHECK_FALSE(verdict.allowed);
    CHECK(verdict.reason == "no rpc endpoint answered: a.example: rpc_timeout (no answer); b.example:8443: rpc_server_error (HTTP 502); "
                            "127.0.0.1:1: rpc_rate_limited (HTTP 429), not asked again for 9 s");

    world.settings.quorum = 2;
    finding.answers = {said(0, true)};
    finding.failures = {{1, {Fault::server_error, "HTTP 502", {}}}};
    verdict = verdict_of(Kind::app, finding, world.known());
    CHECK_FALSE(verdict.allowed); // one voice is no quorum
    CHECK(verdict.rule == "chain");
    CHECK(verdict.reason.starts_with("1 of the 2 rpc endpoints of the quorum answered: b.example:8443: rpc_server_error"));
    finding.answers = {said(0, false, "App not registered")};
    verdict = verdict_of(Kind::app, finding, world.known());
    CHECK_FALSE(verdict.allowed); // but one denial is a denial, with its reason
    CHECK(verdict.rule == "contract");

    Finding busy;
    busy.note = "busy";
    CHECK(verdict_of(Kind::app, busy, world.known()).reason == "busy");
}

TEST_CASE("reasons are short printable ASCII without secrets")
{
    World world;
    Finding finding;
    for (std::size_t i = 0; i < 3; ++i) { finding.failures.push_back({i, {Fault::rpc_error, std::string(300, 'd'), {}}}); }
    const Verdict verdict = verdict_of(Kind::app, finding, world.known());
    CHECK(verdict.reason.size() <= 480);
    for (const EndpointHealth& health : world.health) { CHECK(health.answers == 0); }
    CHECK(verdict.reason.find("SECRET") == std::string::npos);
    CHECK(plain("a\"b\\c\n\x01\xc3\xa9") == "a?b?c?" "???");
    CHECK(plain(std::string(500, 'x'), 10) == "xxxxxxxxxx...");
}

TEST_CASE("the body of GET /")
{
    World world;
    InfoValues values;
    values.answer = said(0, true).answer;
    values.answer.implementation = std::string(40, '1');
    values.at = now - 61s;
    auto body = nlohmann::json::parse(info_body(values, "", world.known()));
    CHECK(body == nlohmann::json{{"status", "ok"},
                                 {"kmsContractAddr", "0x" + std::string(40, 'c')},
                                 {"ethRpcUrl", "https://a.example"},
                                 {"gatewayAppId", "gw"},
                                 {"chainId", 5},
                                 {"appAuthImplementation", "0x" + std::string(40, '1')},
                                 {"appImplementation", "0x" + std::string(40, '1')},
                                 {"blockNumber", 77},
                                 {"ageSeconds", 61}});
    body = nlohmann::json::parse(info_body(values, "no rpc \"endpoint\" answered", world.known()));
    CHECK(body["stale"] == true);
    CHECK(body["cause"] == "no rpc \"endpoint\" answered");
    body = nlohmann::json::parse(info_error("why"));
    CHECK(body == nlohmann::json{{"status", "error"}, {"message", "why"}});
}

TEST_CASE("metrics name each endpoint and no secret")
{
    World world;
    note_answer(world.health[0], now);
    note_failure(world.health[1], {Fault::timeout, {}, {}}, now, 0.0);
    std::string text;
    append_metrics(text, world.known(), InfoValues{said(0, true).answer, now - 5s});
    CHECK(text.find("dstack_auth_chain_endpoint_usable{endpoint=\"a.example\"} 1\n") != std::string::npos);
    CHECK(text.find("dstack_auth_chain_endpoint_usable{endpoint=\"b.example:8443\"} 0\n") != std::string::npos);
    CHECK(text.find("dstack_auth_chain_endpoint_failures_total{endpoint=\"b.example:8443\"} 1\n") != std::string::npos);
    CHECK(text.find("dstack_auth_chain_answer_age_seconds 5\n") != std::string::npos);
    CHECK(text.find("SECRET") == std::string::npos);
}
