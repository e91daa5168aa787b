#include "services/auth/audit.hpp"
#include "shared/ledger/chain.hpp"
#include "shared/ledger/files.hpp"
#include "tests/catch.hpp"
#include "tests/unit/auth/sample.hpp"
#include "tests/unit/state/scratch.hpp"
#include <fstream>

using namespace dstack;
using namespace dstack::auth;
using sample::hex;

namespace
{

/// A ledger that is written as a file, and read like one that dstack-auth wrote.
class Book
{
  public:
    Book() { now_.directory = scratch_.path(); }
    std::uint64_t add(Record record)
    {
        record.time_ms = time_ms_ += 1000;
        const std::string line{writer_.line(record, ++now_.newest, hash_)};
        hash_ = ledger::view(ledger::hash_line(line));
        text_ += line + "\n";
        std::ofstream{scratch_ / std::string{ledger::active_name}, std::ios::binary | std::ios::trunc} << text_;
        now_.files = {1};
        now_.active_bytes = text_.size();
        return now_.newest;
    }
    const LedgerSnapshot& now() const { return now_; }

  private:
    Scratch scratch_;
    RecordWriter writer_;
    LedgerSnapshot now_;
    std::string hash_{ledger::genesis};
    std::string text_;
    std::uint64_t time_ms_ = 1'700'000'000'000;
};

std::shared_ptr<const Snapshot> snapshot(const std::string& text)
{
    auto out = std::make_shared<Snapshot>();
    auto policy = parse_policy(text);
    REQUIRE(policy);
    out->policy = std::move(*policy);
    out->ground.policy_hash = hex('9');
    return out;
}

BootInfo boot_of(const std::string& key = "", const std::string& value = "")
{
    BootInfoReader reader;
    auto boot = reader.read(key.empty() ? sample::body() : sample::body(key, "\"" + value + "\""));
    REQUIRE(boot);
    return std::move(*boot);
}

Record decision(const BootInfo& boot, const Snapshot& policy, Kind kind = Kind::app)
{
    Record out;
    out.kind = to_string(kind);
    out.boot = boot;
    out.verdict = decide(kind, boot, *policy.policy);
    out.policy_hash = policy.ground.policy_hash;
    return out;
}

Record change(const std::string& what, const std::string& app, const std::string& compose, const std::string& policy)
{
    Record out;
    out.kind = "policy";
    out.change = what;
    out.app_id = app;
    out.compose_hash = compose;
    out.policy_hash = policy;
    out.by = "operator:uid=1:pid=2";
    return out;
}

std::uint64_t number_of(const std::string& line) { return line.empty() ? 0 : ledger::read_link(line)->sequence; }

} // namespace

TEST_CASE("the nearest allowed value, rule by rule")
{
    const std::string app = hex('1', 40);
    const auto policy = snapshot(R"({"osImages":[")" + hex('b') + R"(",")" + hex('7') + R"("],"allowedTcbStatuses":["UpToDate","SWHardeningNeeded"],)" +
                                 R"("kms":{"mrAggregated":[")" + hex('a') + R"("],"devices":[")" + hex('5') + R"("]},"apps":{")" + app +
                                 R"(":{"composeHashes":[")" + hex('d') + R"(",{"value":")" + hex('c') +
                                 R"(","expires":"2020-01-01T00:00:00Z"}],"devices":[")" + hex('e') + R"("]},")" + hex('2', 40) +
                                 R"(":{"composeHashes":[")" + hex('3') + R"("],"allowAnyDevice":true}}})");
    struct Row
    {
        const char* rule;
        const char* key;
        std::string value;
        std::string nearest;
        std::uint32_t distance;
        std::string what;
        Kind kind = Kind::app;
    };
    const Row rows[] = {
        {"compose_hash", "composeHash", hex('d', 62) + "00", hex('d'), 2, "a compose hash of the same app"},
        {"compose_hash", "composeHash", hex('c', 63) + "0", hex('c'), 1, "a compose hash of the same app, whose entry expired at 2020-01-01T00:00:00.000Z"},
        {"os_image", "osImageHash", hex('7', 60) + "0000", hex('7'), 4, "an OS image"},
        {"device", "deviceId", hex('0'), hex('e'), 64, "a device of the same app"},
        {"device", "deviceId", hex('0'), hex('5'), 64, "a device of the KMS", Kind::kms},
        {"aggregated_mr", "mrAggregated", hex('a', 63) + "0", hex('a'), 1, "an aggregated MR of a KMS", Kind::kms},
        {"app", "appId", hex('2', 39) + "0", app, 40, "an app that the same compose hash is allowed for"},
        {"tcb_status", "tcbStatus", "UpToDat", "UpToDate", 1, "a TCB status"},
        {"advisory", "tcbStatus", "x", "", 0, ""},
    };
    for (const Row& row : rows)
    {
        CAPTURE(row.rule, row.value);
        const Nearest got = nearest_allowed(*policy->policy, row.kind, boot_of(row.key, row.value), row.rule, 1'800'000'000'000);
        CHECK(got.value == row.nearest);
        CHECK(got.distance == row.distance);
        CHECK(got.what == row.what);
    }
    // an app that is not registered, with a compose hash of its own: the most like id
    BootInfo stranger = boot_of("composeHash", hex('6'));
    stranger.app_id = hex('2', 39) + "0";
    CHECK(nearest_allowed(*policy->policy, Kind::app, stranger, "app", 0).value == hex('2', 40));
    CHECK(nearest_allowed(*snapshot("{}")->policy, Kind::app, stranger, "app", 0).value.empty());
}

TEST_CASE("why goes back to the changes behind a decision")
{
    Book book;
    const std::string app = hex('1', 40);
    const auto open = snapshot(sample::policy());
    const auto closed = snapshot("{}");
    book.add(change("created", "", "", hex('0')));
    book.add(change("allow_app", app, hex('d'), hex('8')));
    book.add(change("allow_app", hex('2', 40), hex('d'), hex('7')));
    book.add(change("allow_image", "", "", hex('9')));
    const auto allowed = book.add(decision(boot_of(), *open));
    book.add(change("revoke_app", app, "", hex('6')));
    book.add(change("external", "", "", hex('9')));
    const auto denied = book.add(decision(boot_of(), *closed));
    const auto other = book.add(decision(boot_of("instanceId", hex('3', 40)), *open));

    schema::AuthExplain question;
    question.sequence = allowed;
    auto why = explain(book.now(), question, open, "/p");
    REQUIRE(why);
    CHECK(number_of(why->record) == allowed);
    CHECK(number_of(why->allowed_by) == 2);
    CHECK(number_of(why->revoked_by) == 0);
    CHECK(number_of(why->policy_record) == 4);
    CHECK(why->same_policy);
    CHECK(why->allowed_now);
    CHECK(why->commands.empty());
    CHECK(why->complete);
    CHECK(why->checks.size() == 6);

    question.sequence = denied;
    why = explain(book.now(), question, closed, "/p");
    REQUIRE(why);
    CHECK(number_of(why->policy_record) == 7);
    CHECK(number_of(why->allowed_by) == 2);
    CHECK(number_of(why->revoked_by) == 6);
    CHECK_FALSE(why->allowed_now);
    CHECK(why->rule_now == "os_image");
    CHECK(why->commands == std::vector<std::string>{"dstack allow --image " + hex('b'), "dstack allow " + hex('d') + " --app " + app});

    question = {};
    question.app_id = "0x" + app; // in any spelling
    why = explain(book.now(), question, open, "/p");
    REQUIRE(why);
    CHECK(number_of(why->record) == other);
    question = {};
    question.instance_id = hex('3', 40);
    CHECK(number_of(explain(book.now(), question, nullptr, "")->record) == other);
    question.instance_id = hex('4', 40);
    CHECK(explain(book.now(), question, open, "").error().code == Errc::not_found);
    question = {};
    CHECK(explain(book.now(), question, open, "").error().code == Errc::invalid_argument);
    question.sequence = 1;
    CHECK(explain(book.now(), question, open, "").error().message.find("is no decision") != std::string::npos);
    question.sequence = 100;
    CHECK(explain(book.now(), question, open, "").error().code == Errc::not_found);
}

TEST_CASE("records are found by what they are about, in both directions")
{
    Book book;
    const auto open = snapshot(sample::policy());
    for (int i = 0; i < 10; ++i)
    {
        book.add(decision(boot_of(i % 2 == 0 ? "appId" : "", i % 2 == 0 ? hex('4', 40) : ""), *open));
    }
    book.add(change("allow_app", hex('4', 40), hex('d'), hex('8')));
    const auto numbers = [&](const schema::AuthAudit& question)
    {
        std::vector<std::uint64_t> out;
        auto found = find_records(book.now(), question);
        REQUIRE(found);
        for (const std::string& line : found->records) { out.push_back(number_of(line)); }
        return std::pair{out, found->next};
    };
    using Numbers = std::pair<std::vector<std::uint64_t>, std::uint64_t>;
    schema::AuthAudit question;
    question.limit = 3;
    CHECK(numbers(question) == Numbers{{11, 10, 9}, 9});
    question.before = 9;
    CHECK(numbers(question) == Numbers{{8, 7, 6}, 6});
    question.before = 3;
    CHECK(numbers(question) == Numbers{{2, 1}, 0});
    question = {};
    question.denied = true;
    CHECK(numbers(question) == Numbers{{9, 7, 5, 3, 1}, 0});
    question = {};
    question.allowed = true;
    question.limit = 2;
    CHECK(numbers(question) == Numbers{{10, 8}, 8});
    question = {};
    question.app_id = hex('4', 40);
    CHECK(numbers(question) == Numbers{{11, 9, 7, 5, 3, 1}, 0});
    question.kind = "policy";
    CHECK(numbers(question) == Numbers{{11}, 0});
    question = {};
    question.since_ms = 1'700'000'000'000 + 9000;
    CHECK(numbers(question).first == std::vector<std::uint64_t>{11, 10, 9});
    question = {};
    question.from = 1;
    question.limit = 4;
    CHECK(numbers(question) == Numbers{{1, 2, 3, 4}, 5});
    question.from = 9;
    CHECK(numbers(question) == Numbers{{9, 10, 11}, 0});
    question.from = 12;
    CHECK(numbers(question) == Numbers{{}, 0});
    question = {};
    question.sequence = 7;
    CHECK(numbers(question) == Numbers{{7}, 0});
    question.sequence = 12;
    CHECK(find_records(book.now(), question).error().code == Errc::not_found);
    question = {};
    question.limit = 0;
    CHECK_FALSE(find_records(book.now(), question));
    question.limit = 5;
    question.app_id = "4";
    CHECK_FALSE(find_records(book.now(), question));
    const LedgerSnapshot nothing;
    CHECK(find_records(nothing, schema::AuthAudit{})->records.empty());
}

TEST_CASE("a policy is tested on what was asked")
{
    Book book;
    const auto open = snapshot(sample::policy());
    book.add(decision(boot_of(), *open));                          // allowed
    book.add(decision(boot_of("composeHash", hex('6')), *open));   // denied
    book.add(decision(boot_of(), *open, Kind::kms));               // allowed
    Record broken;
    broken.kind = "app";
    broken.verdict = deny("request", "no BootInfo");
    book.add(broken);
    schema::AuthTestPolicy question;
    question.last = 10;
    auto same = test_policy(book.now(), question, open);
    REQUIRE(same);
    CHECK(same->tested == 3);
    CHECK(same->skipped == 1);
    CHECK(same->allowed == 2);
    CHECK(same->results.empty());
    question.policy = "{}";
    auto none = test_policy(book.now(), question, open);
    REQUIRE(none);
    CHECK(none->to_denied == 2);
    CHECK(none->to_allowed == 0);
    REQUIRE(none->results.size() == 2);
    CHECK(none->results[0].sequence == 3); // newest first
    CHECK(none->results[0].rule == "os_image");
    question.last = 1;
    CHECK(test_policy(book.now(), question, nullptr)->skipped == 1);
    question = {};
    question.sequence = 2;
    question.policy = sample::policy();
    question.policy.replace(question.policy.find(hex('D')), 64, hex('6'));
    auto one = test_policy(book.now(), question, open);
    REQUIRE(one);
    REQUIRE(one->results.size() == 1);
    CHECK(one->to_allowed == 1);
    CHECK(one->results[0].checks.size() == 6);
    question = {};
    question.boot_info = sample::body();
    auto given = test_policy(book.now(), question, open);
    REQUIRE(given);
    CHECK((given->results[0].was && given->results[0].now));
    question.kind = "kms";
    CHECK(test_policy(book.now(), question, snapshot("{}"))->results[0].rule == "os_image");
    question.kind = "vm";
    CHECK_FALSE(test_policy(book.now(), question, open));
    question = {};
    CHECK_FALSE(test_policy(book.now(), question, open));
    question.last = 1;
    question.sequence = 1;
    CHECK_FALSE(test_policy(book.now(), question, open));
    question = {};
    question.sequence = 4;
    CHECK(test_policy(book.now(), question, open).error().message.find("holds no boot") != std::string::npos);
    question.sequence = 1;
    CHECK(test_policy(book.now(), question, nullptr).error().code == Errc::failed_precondition);
    question.policy = "{\"osImage\":[]}";
    CHECK(test_policy(book.now(), question, open).error().message.find("policy: osImage") != std::string::npos);
}
