#include "services/dstack/audit_view.hpp"
#include "tests/catch.hpp"
#include <nlohmann/json.hpp>

using namespace dstack;
using namespace dstack::cli;

namespace
{
const std::string zeroes(64, '0');

std::string decision(std::uint64_t number, bool allowed)
{
    return "{\"seq\":" + std::to_string(number) + R"(,"time":"2026-01-02T03:04:05.678Z","kind":"app","allowed":)" + (allowed ? "true" : "false") +
           R"(,"rule":"compose_hash",)" + (allowed ? "" : R"("reason":"no \u001b[2J way",)") + R"("boot":{"appId":")" + std::string(40, '1') +
           R"(","composeHash":")" + std::string(64, 'd') + R"(","deviceId":"ee","tcbStatus":"UpToDate"},"rules":[["tcb_status",true],)" +
           R"(["advisory",true,"none","none"],["compose_hash",)" + (allowed ? "true" : "false") + R"(,"cc"],["device",true,"any"]],"agent":"kms","latency_us":5,)" +
           R"("policy":"55","prev":")" + zeroes + "\"}";
}
const std::string change = R"({"seq":3,"time":"2026-01-02T03:04:00.000Z","kind":"policy","change":"allow_app","app_id":"11","compose_hash":"dd","by":"operator:uid=1","reason":"v2","policy":"55","prev":")" +
                           zeroes + "\"}";
} // namespace

TEST_CASE("a record's checks have what was left out of the line")
{
    const RecordView record = view_record(decision(4, false));
    CHECK(record.sequence == 4);
    CHECK((record.decision && !record.allowed && record.rule == "compose_hash" && record.agent == "kms"));
    REQUIRE(record.checks.size() == 4);
    CHECK((record.checks[0].expected == "UpToDate" && record.checks[0].got == "UpToDate" && record.checks[0].pass));
    CHECK((record.checks[1].expected == "none" && record.checks[1].got == "none"));
    CHECK((record.checks[2].expected == "cc" && record.checks[2].got == std::string(64, 'd') && !record.checks[2].pass));
    CHECK((record.checks[3].expected == "any" && record.checks[3].got == "ee"));
    const RecordView policy = view_record(change);
    CHECK((!policy.decision && policy.change == "allow_app" && policy.app_id == "11" && policy.by == "operator:uid=1" && policy.reason == "v2"));
    for (const char* wrong : {"", "x", "[]", "{}", "{\"seq\":-1,\"rules\":[1,[],[2,3,4,5]],\"boot\":7,\"allowed\":\"x\"}"})
    {
        CHECK(view_record(wrong).sequence == 0);
        CHECK_FALSE(record_text(wrong).empty());
        CHECK_FALSE(nlohmann::json::parse(record_json(wrong), nullptr, false).is_discarded());
    }
}

TEST_CASE("records as text and as JSON")
{
    const std::string text = records_text({decision(4, false), decision(5, true), change});
    CHECK(text.find("DENIED") != std::string::npos);
    CHECK(text.find("allowed") != std::string::npos);
    CHECK(text.find("by operator:uid=1: v2") != std::string::npos);
    const auto json = nlohmann::json::parse(records_json({decision(4, false)}, 4));
    CHECK((json["records"].size() == 1 && json["next"] == 4));
    const std::string shown = record_text(decision(4, false));
    CHECK(shown.find("\x1b") == std::string::npos);
    CHECK(shown.find("FAIL") != std::string::npos);
    CHECK(nlohmann::json::parse(record_json(decision(4, true)))["hash"].get<std::string>().size() == 64);
}

TEST_CASE("why, as text and as JSON")
{
    schema::AuthExplain::Reply reply;
    reply.record = decision(4, false);
    reply.checks = view_record(reply.record).checks;
    reply.policy_record = reply.allowed_by = change;
    reply.same_policy = true;
    reply.rule_now = "compose_hash";
    reply.reason_now = "no";
    reply.nearest = std::string(64, 'c');
    reply.nearest_distance = 64;
    reply.nearest_is = "a compose hash of the same app";
    reply.commands = {"dstack allow x"};
    const std::string text = why_text(reply, "hello");
    const auto place = [&text](const char* part) { return text.find(part); };
    for (const char* part : {"decision 4: DENIED", "hello", "checks:", "chain:", "allow_app dd by operator:uid=1 (v2): the policy 55", "decision: DENIED by the rule compose_hash",
                             "the policy is still the same", "differs in 64 of 64", "to allow it:\n  dstack allow x\n"})
    {
        CAPTURE(part);
        CHECK(place(part) != std::string::npos);
    }
    CHECK(place("allow_app") < place("decision: DENIED"));
    CHECK(text.find("allow_app", place("allow_app") + 1) == std::string::npos); // one record, said once
    const auto json = nlohmann::json::parse(why_json(reply, "hello"));
    CHECK((json["nearest"]["distance"] == 64 && json["decision"]["seq"] == 4 && json["revokedBy"].is_null() && json["commands"].size() == 1));

    reply.record = decision(4, true);
    reply.allowed_now = true;
    reply.nearest.clear();
    CHECK(why_text(reply, "").find("and the same boot is allowed") != std::string::npos);
    reply.rule_now.clear(); // nobody could say what would be now
    CHECK(why_text(reply, "").find("now:") == std::string::npos);
}

TEST_CASE("a policy test, as text and as JSON")
{
    schema::AuthTestPolicy::Reply reply;
    reply.tested = 700;
    reply.to_denied = 600;
    reply.results.push_back({9, "t", "app", "11", "dd", true, false, "os_image", "no", {}});
    const std::string text = test_text(reply, false);
    CHECK(text.find("os_image") != std::string::npos);
    CHECK(text.find("... and 599 more") != std::string::npos);
    CHECK(text.find("700 boots tested: 0 would become allowed, 600 would become denied") != std::string::npos);
    CHECK(test_text(reply, true).find("FLIPS: was allowed, would be DENIED by the rule os_image") == 0);
    CHECK(nlohmann::json::parse(test_json(reply))["results"][0]["decision"] == 9);
}

TEST_CASE("what verify found, as text and as JSON")
{
    ledger::VerifyReport report;
    report.records = 7;
    report.files = 1;
    report.head = zeroes;
    CHECK(verify_text(report, "/l").find("intact") != std::string::npos);
    CHECK(verify_text(report, "/l").find("7:" + zeroes) != std::string::npos);
    report.findings.push_back({"/l/decisions.ndjson", 42, 3, "record 3 is missing"});
    CHECK(verify_text(report, "/l").find("/l/decisions.ndjson, offset 42: record 3 is missing") != std::string::npos);
    const auto json = nlohmann::json::parse(verify_json(report, "/l"));
    CHECK((json["intact"] == false && json["findings"][0]["offset"] == 42));
}
