#include "services/auth/decide.hpp"
#include "tests/catch.hpp"
#include "tests/unit/auth/sample.hpp"
#include <nlohmann/json.hpp>

using namespace dstack::auth;
using sample::hex;

namespace
{
Verdict decided(Kind kind, const std::string& body, const std::string& policy)
{
    BootInfoReader reader;
    auto boot = reader.read(body);
    REQUIRE(boot);
    auto parsed = parse_policy(policy);
    REQUIRE(parsed);
    return decide(kind, *boot, *parsed);
}

std::string replaced(std::string text, const std::string& what, const std::string& by)
{
    const auto at = text.find(what);
    REQUIRE(at != std::string::npos);
    return text.replace(at, what.size(), by);
}
} // namespace

TEST_CASE("what the policy allows is allowed, with an empty reason")
{
    for (const Kind kind : {Kind::app, Kind::kms})
    {
        const Verdict verdict = decided(kind, sample::body(), sample::policy());
        CHECK(verdict.allowed);
        CHECK(verdict.reason.empty());
        CHECK(verdict.rule == "device");
        for (const RuleResult& rule : verdict.rules) { CHECK(rule.pass); }
    }
}

TEST_CASE("the first rule that fails gives the reason, in auth-simple's words and order")
{
    struct Row
    {
        Kind kind;
        std::string key;
        std::string value;
        std::string policy;
        std::string rule;
        std::string reason;
    };
    const std::string usual = sample::policy();
    const std::string other = "\"" + hex('9') + "\"";
    const Row rows[] = {
        {Kind::app, "tcbStatus", "\"OutOfDate\"", usual, "tcb_status", "TCB status is not allowed"},
        {Kind::app, "tcbStatus", "\"\"", usual, "tcb_status", "TCB status is not allowed"},
        {Kind::app, "advisoryIds", "[\"INTEL-SA-1\"]", usual, "advisory", "advisory ID is not allowed"},
        {Kind::app, "osImageHash", other, usual, "os_image", "OS image is not allowed"},
        {Kind::app, "osImageHash", "\"\"", usual, "os_image", "OS image is not allowed"},
        {Kind::kms, "osImageHash", other, usual, "os_image", "OS image is not allowed"},
        {Kind::app, "appId", "\"" + hex('9', 40) + "\"", usual, "app", "app not registered"},
        {Kind::app, "composeHash", other, usual, "compose_hash", "compose hash not allowed"},
        {Kind::app, "deviceId", other, replaced(usual, "\"allowAnyDevice\":true", "\"devices\":[\"" + hex('e') + "\"]"),
         "device", "app is not allowed to boot on this device"},
        {Kind::app, "", "", replaced(usual, "\"allowAnyDevice\":true", "\"devices\":[]"), "device",
         "app is not allowed to boot on this device"},
        {Kind::app, "", "", replaced(usual, hex('D'), hex('8')), "compose_hash", "compose hash not allowed"},
        {Kind::kms, "mrAggregated", other, usual, "aggregated_mr", "aggregated MR not allowed"},
        {Kind::kms, "deviceId", other, usual, "device", "KMS is not allowed to boot on this device"},
        {Kind::app, "", "", "{}", "os_image", "OS image is not allowed"},
        {Kind::kms, "", "", replaced(usual, "[\"" + hex('a') + "\"]", "[]"), "aggregated_mr",
         "aggregated MR not allowed"},
    };
    for (const Row& row : rows)
    {
        CAPTURE(row.key, row.value, row.rule);
        const Verdict verdict = decided(row.kind, sample::body(row.key, row.value), row.policy);
        CHECK_FALSE(verdict.allowed);
        CHECK(verdict.rule == row.rule);
        CHECK(verdict.reason.starts_with(row.reason + " (rule " + row.rule + ": expected "));
        CHECK(verdict.reason.find("; to allow it: ") != std::string::npos);
        for (const char c : verdict.reason) { CHECK((c >= 0x20 && c < 0x7f)); }
    }
}

TEST_CASE("every rule is judged and says what it wanted and what came")
{
    const Verdict verdict = decided(Kind::app, sample::body("composeHash", "\"" + hex('9') + "\""), sample::policy());
    REQUIRE(verdict.rules.size() == 6);
    const std::string_view order[] = {"tcb_status", "advisory", "os_image", "app", "compose_hash", "device"};
    for (std::size_t i = 0; i < 6; ++i) { CHECK(verdict.rules[i].rule == order[i]); }
    CHECK(verdict.rules[0].expected == "UpToDate");
    CHECK(verdict.rules[0].got == "UpToDate");
    CHECK_FALSE(verdict.rules[4].pass);
    CHECK(verdict.rules[4].expected == hex('d'));
    CHECK(verdict.rules[4].got == hex('9'));
    CHECK(verdict.rules[5].pass);
    CHECK(verdict.rules[5].expected == "any");
    CHECK(verdict.reason == "compose hash not allowed (rule compose_hash: expected " + hex('d') + "; got " + hex('9') +
                                "; to allow it: run `dstack allow " + hex('9') + " --app " + hex('1', 40) + "`)");
}

TEST_CASE("an entry that has ended denies, and says when it ended")
{
    constexpr std::uint64_t end = 1767225600000; // 2026-01-01T00:00:00Z
    const std::string policy = replaced(sample::policy(), "\"" + hex('D') + "\"",
                                        R"({"value":")" + hex('d') + R"(","expires":"2026-01-01T00:00:00Z","reason":"a try"})");
    auto parsed = parse_policy(policy);
    REQUIRE(parsed);
    BootInfoReader reader;
    auto boot = reader.read(sample::body());
    REQUIRE(boot);
    const Verdict before = decide(Kind::app, *boot, *parsed, end - 1);
    CHECK(before.allowed);
    CHECK(before.rules[4].expected == hex('d') + " until 2026-01-01T00:00:00.000Z");
    const Verdict after = decide(Kind::app, *boot, *parsed, end);
    CHECK_FALSE(after.allowed);
    CHECK(after.reason == "compose hash not allowed: its entry expired at 2026-01-01T00:00:00.000Z (rule compose_hash: expected nothing, as "
                          "every entry has expired; got " + hex('d') + "; to allow it: run `dstack allow " + hex('d') + " --app " +
                              hex('1', 40) + "`)");

    auto grace = parse_policy(replaced(sample::policy(), "{\"osImages\"",
                                       R"({"tcbGrace":{"status":"OutOfDate","until":"2026-01-01T00:00:00Z"},"osImages")"));
    REQUIRE(grace);
    boot->tcb_status = "OutOfDate";
    CHECK(decide(Kind::app, *boot, *grace, end - 1).allowed);
    const Verdict late = decide(Kind::app, *boot, *grace, end);
    CHECK(late.rule == "tcb_status");
    CHECK(late.reason.starts_with("TCB status is not allowed: its entry expired at 2026-01-01T00:00:00.000Z (rule tcb_status: expected UpToDate;"));
    boot->tcb_status = "Revoked";
    CHECK(decide(Kind::app, *boot, *grace, end).reason.starts_with("TCB status is not allowed (rule tcb_status: expected UpToDate; got Revoked"));
}

TEST_CASE("allowed advisories do not hide others")
{
    const std::string policy =
        replaced(sample::policy(), "{\"osImages\"", "{\"allowedAdvisoryIds\":[\"A\",\"B\"],\"osImages\"");
    CHECK(decided(Kind::app, sample::body("advisoryIds", "[\"B\",\"A\"]"), policy).allowed);
    const Verdict mixed = decided(Kind::app, sample::body("advisoryIds", "[\"A\",\"C\"]"), policy);
    CHECK(mixed.rule == "advisory");
    CHECK(mixed.rules[1].got == "C");
}

TEST_CASE("a SEV-SNP device is 128 digits and is compared as such")
{
    const std::string snp = hex('e', 128);
    const std::string policy =
        replaced(sample::policy(), "\"devices\":[\"" + hex('e') + "\"]", "\"devices\":[\"0x" + snp + "\"]");
    CHECK(decided(Kind::kms, sample::body("deviceId", "\"" + snp + "\""), policy).allowed);
    CHECK_FALSE(decided(Kind::kms, sample::body("deviceId", "\"" + hex('e') + "\""), policy).allowed);
}

TEST_CASE("answers are the JSON that the KMS requires")
{
    const auto allowed = nlohmann::json::parse(answer_body(decided(Kind::app, sample::body(), sample::policy()), "gw"));
    CHECK(allowed == nlohmann::json{{"isAllowed", true}, {"gatewayAppId", "gw"}, {"reason", ""}});
    const auto denied = nlohmann::json::parse(answer_body(deny("policy", "policy \"x\\y\"\n\x1b\xff"), ""));
    CHECK(denied["isAllowed"] == false);
    CHECK(denied["gatewayAppId"] == "");
    CHECK(denied["reason"].get<std::string>().starts_with("policy \"x\\y\"\n"));
    auto policy =
        parse_policy(R"({"gatewayAppId":"gw","chainId":1,"kmsContractAddr":"0x1","appImplementation":"0x2"})");
    REQUIRE(policy);
    const auto info = nlohmann::json::parse(info_body(*policy));
    CHECK(info == nlohmann::json{{"status", "ok"},
                                 {"kmsContractAddr", "0x1"},
                                 {"gatewayAppId", "gw"},
                                 {"chainId", 1},
                                 {"appAuthImplementation", "0x2"},
                                 {"appImplementation", "0x2"}});
}
