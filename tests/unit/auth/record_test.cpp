#include "services/auth/record.hpp"
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

std::vector<std::string> ledger(std::size_t count)
{
    std::vector<std::string> lines;
    std::string hash{genesis};
    for (std::size_t i = 0; i < count; ++i)
    {
        lines.push_back(encode_record(decision(hex(i % 2 == 0 ? 'd' : '9')), i + 1, hash));
        hash = line_hash(lines.back());
    }
    return lines;
}

} // namespace

TEST_CASE("a decision is written and read again")
{
    const std::string line = encode_record(decision(hex('9')), 1, genesis);
    const auto json = nlohmann::json::parse(line);
    CHECK(json["boot"]["composeHash"] == hex('9'));
    CHECK(json["boot"]["advisoryIds"] == nlohmann::json::array());
    CHECK(json["agent"] == "dstack-kms/0.5.4");
    CHECK(json["latency_us"] == 17);
    CHECK(json["rules"].size() == 6);
    CHECK(json["prev"] == std::string{genesis});

    Chain chain;
    auto entry = chain.next(line);
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
    CHECK(chain.hash() == line_hash(line));
    CHECK(chain.identity() == line_hash(line));
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
    Chain chain;
    auto entry = chain.next(encode_record(record, 1, genesis));
    REQUIRE(entry);
    CHECK(entry->kind == "policy");
    CHECK(entry->change.change == "allow_app");
    CHECK(entry->change.app_id == hex('1', 40));
    CHECK(entry->change.by == "operator:uid=0:pid=1");
    CHECK(entry->change.policy_hash == hex('3'));
}

TEST_CASE("the chain shows what was done to it")
{
    const auto usual = ledger(5);
    const auto walk = [](const std::vector<std::string>& lines) -> std::string
    {
        Chain chain;
        for (const std::string& line : lines)
        {
            auto entry = chain.next(line);
            if (!entry) { return entry.error().message; }
        }
        return "";
    };
    CHECK(walk(usual).empty());

    auto changed = usual;
    changed[1].replace(changed[1].find("\"allowed\":false"), 15, "\"allowed\":true ");
    CHECK(walk(changed) == "record 3 does not continue the chain: it, or the one before, was changed");
    auto removed = usual;
    removed.erase(removed.begin() + 2);
    CHECK(walk(removed) == "record 3 is missing: 4 is in its place");
    auto swapped = usual;
    std::swap(swapped[1], swapped[2]);
    CHECK(walk(swapped) == "record 2 is missing: 3 is in its place");
    auto first_lost = usual;
    first_lost.erase(first_lost.begin());
    CHECK(walk(first_lost) == "record 1 is missing: 2 is in its place");
    auto cut = usual;
    cut[4].resize(cut[4].size() / 2);
    CHECK(walk(cut) == "record 5: no valid JSON");
    auto repeated = usual;
    repeated.insert(repeated.begin() + 3, usual[2]);
    CHECK(walk(repeated) == "record 4 is missing: 3 is in its place");
}
