#include "services/auth/record.hpp"
#include "shared/ledger/chain.hpp"
#include "tests/catch.hpp"
#include "tests/unit/auth/sample.hpp"
#include <nlohmann/json.hpp>

using namespace dstack::auth;
using sample::hex;

namespace
{

Record decision(const std::string& compose_hash)
{
    BootInfoReader reader;
    auto boot = reader.read(sample::body("composeHash", "\"" + compose_hash + "\""));
    REQUIRE(boot);
    auto policy = parse_policy(sample::policy());
    REQUIRE(policy);
    Record out;
    out.time_ms = 1'700'000'000'123;
    out.kind = "app";
    out.verdict = decide(Kind::app, *boot, *policy);
    out.boot = *boot;
    out.agent = "dstack-kms/0.5.4";
    out.latency_us = 17;
    out.policy_hash = hex('5');
    return out;
}

std::string line_of(const Record& record, std::uint64_t sequence = 1)
{
    RecordWriter writer;
    return std::string{writer.line(record, sequence, dstack::ledger::genesis)};
}

} // namespace

TEST_CASE("a decision is written and read again")
{
    const std::string line = line_of(decision(hex('9')));
    const auto json = nlohmann::json::parse(line);
    CHECK(json["boot"]["composeHash"] == hex('9'));
    CHECK_FALSE(json["boot"].contains("advisoryIds"));
    CHECK(json["agent"] == "dstack-kms/0.5.4");
    CHECK(json["latency_us"] == 17);
    CHECK(json["rules"].size() == 6);
    CHECK(json["prev"] == std::string{dstack::ledger::genesis});
    CHECK(line.size() < 1500);
    CHECK(line_of(decision(hex('d'))).size() < 1050);

    EntryReader reader;
    auto entry = reader.read(line);
    REQUIRE(entry);
    CHECK(entry->sequence == 1);
    CHECK(entry->time_ms == 1'700'000'000'123);
    CHECK_FALSE(entry->decision.allowed);
    CHECK(entry->decision.time == "2023-11-14T22:13:20.123Z");
    CHECK(entry->decision.kind == "app");
    CHECK(entry->decision.rule == "compose_hash");
    CHECK(entry->decision.expected == hex('d'));
    CHECK(entry->decision.got == hex('9'));
    CHECK(entry->decision.app_id == hex('1', 40));
    CHECK(entry->decision.policy_hash == hex('5'));
}

TEST_CASE("what was judged can be judged again")
{
    BootInfoReader boots;
    for (const char* changed : {"", "composeHash", "deviceId", "osImageHash", "instanceId", "tcbStatus", "advisoryIds"})
    {
        const std::string key = changed;
        const std::string value = key == "tcbStatus"     ? "\"Revoked \\\"quoted\\\"\""
                                  : key == "advisoryIds" ? "[\"INTEL-SA-1\", \"INTEL-SA-2\"]"
                                  : key == "osImageHash" ? "\"\""
                                                         : "\"" + hex('8', key == "instanceId" ? 40 : 64) + "\"";
        CAPTURE(key);
        auto boot = boots.read(key.empty() ? sample::body() : sample::body(key, value));
        REQUIRE(boot);
        auto policy = parse_policy(sample::policy());
        REQUIRE(policy);
        Record record;
        record.kind = "app";
        record.verdict = decide(Kind::app, *boot, *policy);
        record.boot = *boot;
        EntryReader reader;
        auto again = reader.read_decision(line_of(record));
        REQUIRE(again);
        REQUIRE(again->boot);
        CHECK(again->boot->advisory_ids == boot->advisory_ids);
        CHECK(again->boot->tcb_status == boot->tcb_status);
        CHECK(again->boot->mr_system == boot->mr_system);
        CHECK(again->boot->tee_variant == boot->tee_variant);
        CHECK(again->boot->os_image_hash == boot->os_image_hash);
        REQUIRE(again->checks.size() == record.verdict.rules.size());
        for (std::size_t i = 0; i < again->checks.size(); ++i)
        {
            CHECK(again->checks[i].rule == record.verdict.rules[i].rule);
            CHECK(again->checks[i].pass == record.verdict.rules[i].pass);
            CHECK(again->checks[i].expected == record.verdict.rules[i].expected);
            CHECK(again->checks[i].got == record.verdict.rules[i].got);
        }
        CHECK(again->entry.decision.allowed == record.verdict.allowed);
        CHECK(again->entry.decision.reason == record.verdict.reason);
    }
}

TEST_CASE("a change of the policy is written and read again")
{
    Record record;
    record.time_ms = 1;
    record.kind = "policy";
    record.change = "allow_app";
    record.app_id = hex('1', 40);
    record.compose_hash = hex('2');
    record.by = "operator:uid=0:pid=1";
    record.reason = "quote \" and \\ and \n";
    record.policy_hash = hex('3');
    EntryReader reader;
    auto entry = reader.read(line_of(record));
    REQUIRE(entry);
    CHECK(entry->kind == "policy");
    CHECK(entry->change.change == "allow_app");
    CHECK(entry->change.app_id == hex('1', 40));
    CHECK(entry->change.by == "operator:uid=0:pid=1");
    CHECK(entry->change.policy_hash == hex('3'));
}

TEST_CASE("whatever a text holds, the line is JSON and says it again")
{
    RecordWriter writer;
    EntryReader reader;
    std::string nasty;
    for (int byte = 1; byte < 128; ++byte) { nasty += static_cast<char>(byte); }
    for (std::size_t size = 0; size < 40; ++size)
    {
        for (const char c : {'x', '"', '\\', '\n', '\x7f'})
        {
            Record record;
            record.kind = "policy";
            record.change = std::string(size, 'y') + c + std::string(size % 7, 'z') + c;
            record.by = nasty.substr(size);
            record.time_ms = 1000 * size + 7;
            const std::string line{writer.line(record, size + 1, dstack::ledger::genesis, size % 2 == 0)};
            auto entry = reader.read(line);
            REQUIRE(entry);
            CHECK(entry->change.change == record.change);
            CHECK(entry->change.by == record.by);
            CHECK(entry->time_ms == record.time_ms);
            CHECK(nlohmann::json::parse(line)["by"] == record.by);
        }
    }
}
