#include "services/auth/ledger.hpp"
#include "tests/catch.hpp"
#include "tests/unit/state/scratch.hpp"
#include <fstream>
#include <functional>
#include <sstream>

using namespace dstack;
using namespace dstack::auth;

namespace
{

Record record(const std::string& reason)
{
    Record out;
    out.time_ms = 1'700'000'000'000;
    out.kind = "app";
    out.policy_hash = "p";
    out.verdict = deny("request", reason);
    return out;
}

std::string content(const std::string& path)
{
    std::ifstream file{path, std::ios::binary};
    std::ostringstream out;
    out << file.rdbuf();
    return out.str();
}

void replace_content(const std::string& path, const std::string& text)
{
    std::ofstream{path, std::ios::binary | std::ios::trunc} << text;
}

Task<> append_one(Ledger& ledger, std::string reason, std::vector<Result<Entry>>& out)
{
    auto entry = co_await ledger.append(record(reason));
    out.push_back(std::move(entry));
}

Task<> append_many(Loop& loop, Ledger& ledger, int count, std::vector<Result<Entry>>& out)
{
    Scope writer{loop};
    writer.spawn(ledger.run());
    Scope askers{loop};
    for (int i = 0; i < count; ++i) { askers.spawn(append_one(ledger, std::to_string(i), out)); }
    co_await askers.drain();
}

/// Appends `count` records at once and gives what each was answered.
std::vector<Result<Entry>> appended(const std::string& directory, int count)
{
    std::vector<Result<Entry>> out;
    Loop loop;
    auto ledger = Ledger::open(loop, directory);
    REQUIRE(ledger);
    loop.run(append_many(loop, **ledger, count, out));
    return out;
}

Task<> read_some(Ledger& ledger, std::uint64_t from, std::size_t limit, std::vector<std::uint64_t>& out)
{
    auto entries = co_await ledger.read(from, limit);
    if (!entries) { co_return; }
    for (const Entry& entry : *entries) { out.push_back(entry.sequence); }
}

} // namespace

TEST_CASE("records that wait together are chained in the order of asking")
{
    Scratch scratch;
    const auto answers = appended(scratch / "ledger", 100);
    REQUIRE(answers.size() == 100);
    for (std::size_t i = 0; i < answers.size(); ++i)
    {
        REQUIRE(answers[i]);
        CHECK(answers[i]->sequence == i + 1);
        CHECK(answers[i]->decision.reason == std::to_string(i));
    }
    // a new process goes on where the former one stopped
    const auto more = appended(scratch / "ledger", 1);
    REQUIRE((more.size() == 1 && more[0]));
    CHECK(more[0]->sequence == 101);
}

TEST_CASE("old entries are read from the file, new ones from memory")
{
    Scratch scratch;
    REQUIRE(appended(scratch / "ledger", 1500).size() == 1500);
    Loop loop;
    auto ledger = Ledger::open(loop, scratch / "ledger");
    REQUIRE(ledger);
    CHECK((*ledger)->sequence() == 1500);
    struct Row
    {
        std::uint64_t from;
        std::size_t limit;
        std::uint64_t first;
        std::size_t count;
    };
    const Row rows[] = {{0, 2, 1, 2},         {1, 3, 1, 3},       {256, 2, 256, 2},    {257, 1, 257, 1},
                        {400, 200, 400, 200}, {600, 10, 600, 10}, {1499, 10, 1499, 2}, {1501, 10, 0, 0}};
    for (const Row& row : rows)
    {
        CAPTURE(row.from, row.limit);
        std::vector<std::uint64_t> got;
        loop.run(read_some(**ledger, row.from, row.limit, got));
        REQUIRE(got.size() == row.count);
        for (std::size_t i = 0; i < got.size(); ++i) { CHECK(got[i] == row.first + i); }
    }
    CHECK((*ledger)->newest("", 5).size() == 5);
    CHECK((*ledger)->newest("", 1)[0].sequence == 1500);
    CHECK((*ledger)->newest("an app that never asked", 5).empty());
}

TEST_CASE("a cancelled asker leaves the others alone")
{
    Scratch scratch;
    Loop loop;
    auto ledger = Ledger::open(loop, scratch / "ledger");
    REQUIRE(ledger);
    std::vector<Result<Entry>> out;
    {
        Scope gone{loop};
        gone.spawn(append_one(**ledger, "gone", out));
    }
    loop.run(append_many(loop, **ledger, 2, out));
    REQUIRE(out.size() == 2);
    CHECK(out[0]->sequence == 2); // the first record was asked for, and is there
    CHECK(out[1]->sequence == 3);
}

TEST_CASE("opening tells a torn tail from damage")
{
    Scratch scratch;
    const std::string directory = scratch / "ledger";
    const std::string path = directory + "/decisions.ndjson";
    REQUIRE(appended(directory, 3).size() == 3);
    const std::string whole = content(path);

    const auto opened = [&](const std::string& text) -> std::string
    {
        replace_content(path, text);
        Loop loop;
        auto ledger = Ledger::open(loop, directory);
        return ledger ? "opened " + std::to_string((*ledger)->sequence()) : ledger.error().message;
    };
    CHECK(opened(whole) == "opened 3");
    CHECK(opened(whole.substr(0, whole.size() - 1)) == "opened 3"); // the third was cut off; the repair is the third
    CHECK(content(path).find("\"kind\":\"repair\"") != std::string::npos);
    CHECK(opened(whole + std::string(100, '\0')) == "opened 4");
    std::string changed = whole;
    changed.replace(changed.find("\"request\""), 9, "\"Request\"");
    CHECK(opened(changed).find("offset " + std::to_string(whole.find('\n') + 1) +
                               ": record 2 does not continue the chain") != std::string::npos);
    CHECK(content(path) == changed);
    CHECK(opened(whole + "\n").find("record 4: no valid JSON") != std::string::npos);

    replace_content(path, whole);
    Loop loop;
    auto first = Ledger::open(loop, directory);
    REQUIRE(first);
    auto second = Ledger::open(loop, directory);
    REQUIRE_FALSE(second);
    CHECK(second.error().code == Errc::failed_precondition);
}
