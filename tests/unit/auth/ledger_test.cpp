#include "services/auth/ledger.hpp"
#include "services/auth/ledger_read.hpp"
#include "shared/crypto/curve25519.hpp"
#include "shared/ledger/chain.hpp"
#include "shared/ledger/checkpoint.hpp"
#include "shared/ledger/files.hpp"
#include "shared/ledger/verify.hpp"
#include "tests/catch.hpp"
#include "tests/unit/state/scratch.hpp"
#include <filesystem>
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

using Answers = std::vector<Result<std::uint64_t>>;

Task<> append_one(Ledger& ledger, std::string reason, Answers& out)
{
    const Record one = record(reason);
    auto entry = co_await ledger.append(one);
    out.push_back(std::move(entry));
}

/// Records that are appended together.
Task<> append_many(Loop& loop, Ledger& ledger, int count, Answers& out, bool clean_stop)
{
    Scope writer{loop};
    writer.spawn(ledger.run());
    Scope askers{loop};
    for (int i = 0; i < count; ++i) { askers.spawn(append_one(ledger, std::to_string(i), out)); }
    co_await askers.drain();
    if (clean_stop) { co_await ledger.finish(); }
}

/// Appends `count` records at once and gives what each was answered; ends like a crash.
Answers appended(const std::string& directory, int count)
{
    Answers out;
    Loop loop;
    auto ledger = Ledger::open(loop, directory);
    REQUIRE(ledger);
    loop.run(append_many(loop, **ledger, count, out, false));
    return out;
}

Task<> append_in_turn(Loop& loop, Ledger& ledger, int count, Answers& out)
{
    Scope writer{loop};
    writer.spawn(ledger.run());
    for (int i = 0; i < count; ++i)
    {
        co_await append_one(ledger, std::to_string(i), out);
    }
    co_await ledger.finish();
}

/// Several files and checkpoints.
LedgerOptions small(const std::string& directory)
{
    LedgerOptions out;
    out.directory = directory;
    out.segment_bytes = 2000;
    out.checkpoint_records = 4;
    return out;
}

void fill(const LedgerOptions& options, int count)
{
    Loop loop;
    auto ledger = Ledger::open(loop, options);
    REQUIRE(ledger);
    Answers out;
    loop.run(append_in_turn(loop, **ledger, count, out));
    REQUIRE(out.size() == static_cast<std::size_t>(count));
    for (const auto& one : out) { REQUIRE(one); }
}

ledger::VerifyReport verified(const std::string& directory)
{
    ledger::VerifyOptions options;
    options.directory = directory;
    auto report = ledger::verify(options);
    REQUIRE(report);
    return std::move(*report);
}

std::string findings(const ledger::VerifyReport& report)
{
    std::string out;
    for (const auto& one : report.findings)
    {
        out += one.file.substr(one.file.rfind('/') + 1) + ":" + std::to_string(one.offset) + ": " + one.what + "\n";
    }
    return out;
}

std::vector<std::string> lines_of(const std::string& path)
{
    std::vector<std::string> out;
    std::istringstream text{content(path)};
    for (std::string line; std::getline(text, line);) { out.push_back(line); }
    return out;
}

void write_lines(const std::string& path, const std::vector<std::string>& lines)
{
    std::string text;
    for (const std::string& line : lines) { text += line + "\n"; }
    replace_content(path, text);
}

std::size_t count_of(const std::string& text, const std::string& part)
{
    std::size_t out = 0;
    for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) { ++out; }
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
        CHECK(*answers[i] == i + 1);
    }
    // a new process goes on where the former one stopped
    const auto more = appended(scratch / "ledger", 1);
    REQUIRE((more.size() == 1 && more[0]));
    CHECK(*more[0] == 101);
    const auto lines = lines_of(scratch / "ledger/decisions.ndjson");
    REQUIRE(lines.size() == 101);
    CHECK(lines[41].find("\"reason\":\"41\"") != std::string::npos);
    CHECK(count_of(content(scratch / "ledger/decisions.ndjson"), "\"flush\":true") == 2);
    CHECK(findings(verified(scratch / "ledger")).empty());
}

Task<> read_newest(Ledger& ledger, std::string app_id, std::size_t limit, std::vector<std::uint64_t>& out)
{
    auto found = co_await ledger.newest(std::move(app_id), limit);
    if (!found) { co_return; }
    for (const auto& one : *found) { out.push_back(one.sequence); }
}

TEST_CASE("entries are read by their number, in one file or in many")
{
    Scratch scratch;
    LedgerOptions options;
    options.directory = scratch / "ledger";
    const bool many = GENERATE(false, true);
    if (many)
    {
        options.segment_bytes = 3000;
        fill(options, 1500);
    }
    else { REQUIRE(appended(scratch / "ledger", 1500).size() == 1500); }
    Loop loop;
    auto ledger = Ledger::open(loop, options);
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
    CHECK((*ledger)->snapshot().files.size() > (many ? 10 : 0));
    std::vector<std::uint64_t> all;
    for (std::uint64_t from = 1; from <= 1500; from = all.size() + 1) { loop.run(read_some(**ledger, from, 64, all)); }
    REQUIRE(all.size() == 1500);
    for (std::size_t i = 0; i < all.size(); ++i) { CHECK(all[i] == i + 1); }
    std::vector<std::uint64_t> newest;
    loop.run(read_newest(**ledger, "", 5, newest));
    CHECK(newest == std::vector<std::uint64_t>{1500, 1499, 1498, 1497, 1496});
    newest.clear();
    loop.run(read_newest(**ledger, "", 5000, newest));
    REQUIRE(newest.size() == 1500);
    for (std::size_t i = 0; i < newest.size(); ++i) { CHECK(newest[i] == 1500 - i); }
    newest.clear();
    loop.run(read_newest(**ledger, "an app that never asked", 5, newest));
    CHECK(newest.empty());
    for (std::uint64_t before : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{2}, std::uint64_t{700}, std::uint64_t{1500}, std::uint64_t{9999}})
    {
        CAPTURE(before);
        std::uint64_t first = 0;
        std::uint64_t count = 0;
        auto scanned = scan_backwards((*ledger)->snapshot(), before, max_scan,
                                      [&](std::string_view line)
                                      {
                                          const auto link = ledger::read_link(line);
                                          first = first == 0 ? link->sequence : first;
                                          return ++count < 5000;
                                      });
        REQUIRE(scanned);
        const std::uint64_t wanted = before == 0 || before > 1500 ? 1500 : before - 1;
        CHECK(first == wanted);
        CHECK(count == wanted);
    }
    for (std::uint64_t number : {std::uint64_t{1}, std::uint64_t{777}, std::uint64_t{1500}})
    {
        auto line = read_line((*ledger)->snapshot(), number);
        REQUIRE(line);
        CHECK(ledger::read_link(*line)->sequence == number);
    }
    CHECK_FALSE(read_line((*ledger)->snapshot(), 1501));
    CHECK_FALSE(read_line((*ledger)->snapshot(), 0));
}

TEST_CASE("a cancelled asker leaves the others alone")
{
    Scratch scratch;
    Loop loop;
    auto ledger = Ledger::open(loop, scratch / "ledger");
    REQUIRE(ledger);
    Answers out;
    {
        Scope gone{loop};
        gone.spawn(append_one(**ledger, "gone", out));
    }
    loop.run(append_many(loop, **ledger, 2, out, true));
    REQUIRE(out.size() == 2);
    CHECK(*out[0] == 2); // the first record was asked for, and is there
    CHECK(*out[1] == 3);
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
    CHECK(opened(whole + std::string(100, '\0')) == "opened 3"); // room for more records
    std::string changed = whole;
    changed.replace(changed.find("\"request\""), 9, "\"Request\"");
    CHECK(opened(changed).find("offset " + std::to_string(whole.find('\n') + 1) +
                               ": record 2 does not continue the chain") != std::string::npos);
    CHECK(content(path) == changed);
    CHECK(opened(whole + "\n").find("where record 4 should be is none") != std::string::npos);

    replace_content(path, whole);
    Loop loop;
    auto first = Ledger::open(loop, directory);
    REQUIRE(first);
    auto second = Ledger::open(loop, directory);
    REQUIRE_FALSE(second);
    CHECK(second.error().code == Errc::failed_precondition);
}

TEST_CASE("zeroes behind the records are room, within them what a crash of the machine leaves, or damage")
{
    Scratch scratch;
    const std::string directory = scratch / "ledger";
    const std::string path = directory + "/decisions.ndjson";
    for (int i = 0; i < 3; ++i) { REQUIRE(appended(directory, 4).size() == 4); } // three flushes
    const std::string whole = content(path);
    const auto starts = [&]
    {
        std::vector<std::size_t> out{0};
        for (auto at = whole.find('\n'); at != std::string::npos; at = whole.find('\n', at + 1)) { out.push_back(at + 1); }
        return out;
    }();
    const auto zeroed = [&](std::size_t from, std::size_t to)
    {
        std::string out = whole;
        std::fill(out.begin() + static_cast<std::ptrdiff_t>(from), out.begin() + static_cast<std::ptrdiff_t>(to), '\0');
        return out;
    };
    struct Row
    {
        const char* what;
        std::string text;
        std::string wanted;
    };
    const Row rows[] = {
        {"room", whole + std::string(300'000, '\0'), "opened 12"},
        {"the last", zeroed(starts[11] + 5, starts[12]), "opened 12"},
        {"within the last flush, and its end is there", zeroed(starts[9] + 5, starts[10]), "opened 10"},
        {"across lines of it", zeroed(starts[9] + 5, starts[11] - 7), "opened 10"},
        {"the whole last flush", zeroed(starts[8], starts[12]), "opened 8"},
        {"within an earlier flush", zeroed(starts[5] + 5, starts[6]), "offset " + std::to_string(starts[5])},
        {"within the first record", zeroed(5, 20), "offset 0"},
    };
    for (const Row& row : rows)
    {
        CAPTURE(row.what);
        std::filesystem::remove(directory + "/checkpoints.ndjson");
        std::filesystem::remove(directory + "/checkpoint.key");
        replace_content(path, row.text);
        // As if it had always been there without checkpoints: that adds a record.
        Loop loop;
        auto ledger = Ledger::open(loop, directory);
        const std::string got = ledger ? "opened " + std::to_string((*ledger)->sequence() - 1) : ledger.error().message;
        CHECK(got.find(row.wanted) != std::string::npos);
        if (!ledger) { CHECK(content(path) == row.text); }
    }
}

TEST_CASE("a ledger of several files is verified")
{
    Scratch scratch;
    const LedgerOptions options = small(scratch / "ledger");
    fill(options, 50);
    fill(options, 5);
    const auto report = verified(options.directory);
    CHECK(findings(report).empty());
    CHECK(report.records == 55);
    CHECK(report.signed_records == 55); // a clean stop signs the rest
    CHECK(report.files > 5);
    CHECK(report.checkpoints > 10);
    CHECK(report.unfinished == 0);
    Loop loop;
    auto ledger = Ledger::open(loop, options);
    REQUIRE(ledger);
    CHECK((*ledger)->sequence() == 55);
    CHECK((*ledger)->identity() == report.ledger.substr(0, 16));

    ledger::VerifyOptions expecting;
    expecting.directory = options.directory;
    expecting.expect_sequence = 55;
    expecting.expect_hash = report.head;
    CHECK(ledger::verify(expecting)->intact());
    expecting.expect_hash[0] = expecting.expect_hash[0] == 'a' ? 'b' : 'a';
    CHECK_FALSE(ledger::verify(expecting)->intact());
    expecting.expect_sequence = 56;
    CHECK_FALSE(ledger::verify(expecting)->intact());
}

TEST_CASE("verify finds what was done to a ledger")
{
    Scratch scratch;
    const LedgerOptions options = small(scratch / "whole");
    fill(options, 50);
    const std::string directory = scratch / "changed";
    const std::string checkpoints = directory + "/checkpoints.ndjson";
    auto segments = ledger::list_segments(options.directory);
    REQUIRE(segments);
    REQUIRE(segments->size() > 4);
    const auto name_of = [&](std::size_t index) { return directory + (*segments)[index].path.substr(options.directory.size()); };
    const std::string second = name_of(1);
    const std::string active = name_of(segments->size() - 1);
    const auto edit = [](const std::string& path, const std::function<void(std::vector<std::string>&)>& change)
    {
        auto lines = lines_of(path);
        REQUIRE(lines.size() > 2);
        change(lines);
        write_lines(path, lines);
    };
    const auto swap_text = [](std::string& line, const std::string& from, const std::string& to)
    {
        REQUIRE(line.find(from) != std::string::npos);
        line.replace(line.find(from), from.size(), to);
    };
    struct Row
    {
        const char* what;
        std::function<void()> change;
        const char* finding;
        bool starts = false; ///< the service still starts: what was changed is before what it looks at
    };
    const Row rows[] = {
        {"nothing", [] {}, "", true},
        {"a record changed", [&] { edit(second, [&](auto& l) { swap_text(l[1], "\"allowed\":false", "\"allowed\":true "); }); },
         "does not continue the chain", true},
        {"the last record of a file changed", [&] { edit(second, [&](auto& l) { swap_text(l.back(), "\"allowed\":false", "\"allowed\":true "); }); },
         "was changed", true},
        {"the newest record changed", [&] { edit(active, [&](auto& l) { swap_text(l.back(), "\"allowed\":false", "\"allowed\":true "); }); },
         "is not the one that checkpoint"},
        {"a record removed", [&] { edit(second, [](auto& l) { l.erase(l.begin() + 1); }); }, "is missing", true},
        {"two records swapped", [&] { edit(second, [](auto& l) { std::swap(l[1], l[2]); }); }, "is missing", true},
        {"a record twice", [&] { edit(second, [](auto& l) { l.insert(l.begin() + 1, l[1]); }); }, "is in its place", true},
        {"a line that is no record", [&] { edit(second, [](auto& l) { l.insert(l.begin() + 1, "x"); }); }, "should be is none", true},
        {"the first file removed", [&] { std::filesystem::remove(name_of(0)); }, "record 1 is missing", true},
        {"a file removed", [&] { std::filesystem::remove(second); }, "is missing", true},
        {"two files exchanged",
         [&]
         {
             std::filesystem::rename(second, directory + "/x");
             std::filesystem::rename(name_of(2), second);
             std::filesystem::rename(directory + "/x", name_of(2));
         },
         "is missing", true},
        {"a file cut in a record", [&] { std::filesystem::resize_file(second, std::filesystem::file_size(second) - 10); }, "not whole", true},
        {"cut at the end", [&] { edit(active, [](auto& l) { l.pop_back(); }); }, "records were removed at the end"},
        {"the active file emptied", [&] { replace_content(active, ""); }, "records were removed at the end"},
        {"the active file removed", [&] { std::filesystem::remove(active); }, "records were removed at the end"},
        {"a checkpoint changed", [&] { edit(checkpoints, [&](auto& l) { swap_text(l[3], "\"records\":", "\"records\":1"); }); }, "signature is not by this key", true},
        {"the newest checkpoint changed", [&] { edit(checkpoints, [&](auto& l) { swap_text(l.back(), "\"records\":", "\"records\":1"); }); },
         "signature is not by this key"},
        {"a checkpoint removed", [&] { edit(checkpoints, [](auto& l) { l.erase(l.begin() + 3); }); }, "is missing", true},
        {"a checkpoint forged with another key",
         [&]
         {
             edit(checkpoints,
                  [&](auto& l)
                  {
                      auto key = ledger::public_from_pem(content(directory + "/checkpoint.pub"));
                      auto last = ledger::read_checkpoint(l.back(), *key);
                      REQUIRE(last);
                      last->records -= 1;
                      crypto::Bytes32 seed{};
                      l.back() = ledger::encode_checkpoint(*last, seed);
                  });
         },
         "signature is not by this key"},
        {"another public key", [&] { replace_content(directory + "/checkpoint.pub", ledger::public_pem(crypto::ed25519_public(crypto::Bytes32{}))); },
         "signature is not by this key", true},
        {"all checkpoints removed", [&] { std::filesystem::remove(checkpoints); }, "there are no checkpoints", true},
        {"rewritten from a place on, with a right chain",
         [&]
         {
             edit(active,
                  [&](auto& l)
                  {
                      swap_text(l[0], "\"allowed\":false", "\"allowed\":true ");
                      for (std::size_t i = 1; i < l.size(); ++i)
                      {
                          const auto hash = ledger::hash_line(l[i - 1]);
                          l[i].replace(l[i].size() - 66, 64, std::string{ledger::view(hash)});
                      }
                  });
         },
         "signed"},
    };
    for (const Row& row : rows)
    {
        CAPTURE(row.what);
        std::filesystem::remove_all(directory);
        std::filesystem::copy(options.directory, directory);
        row.change();
        const auto report = verified(directory);
        CAPTURE(findings(report));
        if (*row.finding == '\0') { CHECK(report.intact()); }
        else { CHECK(findings(report).find(row.finding) != std::string::npos); }
        Loop loop;
        auto ledger = Ledger::open(loop, LedgerOptions{directory, milliseconds{0}, 2000, 4, milliseconds{10'000}});
        CAPTURE(ledger ? "" : ledger.error().message);
        CHECK(static_cast<bool>(ledger) == row.starts);
        if (!ledger) { CHECK(ledger.error().code == Errc::data_loss); }
    }
}

namespace
{

Task<> wait_for_damage(Loop& loop, Ledger& ledger, std::string& message)
{
    Scope writer{loop};
    writer.spawn(ledger.run());
    while (!ledger.damage())
    {
        ledger.changed().reset();
        co_await ledger.changed().wait();
    }
    message = ledger.damage()->message;
    Answers out;
    co_await append_one(ledger, "x", out);
    CHECK_FALSE(out[0]);
}

} // namespace

TEST_CASE("damage before the last checkpoint of a large file is found after the start")
{
    Scratch scratch;
    LedgerOptions options;
    options.directory = scratch / "ledger";
    {
        Loop loop;
        auto ledger = Ledger::open(loop, options);
        REQUIRE(ledger);
        Answers out;
        loop.run(append_many(loop, **ledger, 12000, out, true));
    }
    const std::string path = options.directory + "/decisions.ndjson";
    std::string text = content(path);
    REQUIRE(text.size() > 2 * 1024 * 1024);
    const auto at = text.find("\"allowed\":false", text.size() / 2);
    text.replace(at, 15, "\"allowed\":true ");
    replace_content(path, text);
    Loop loop;
    auto ledger = Ledger::open(loop, options);
    REQUIRE(ledger);
    std::string message;
    loop.run(wait_for_damage(loop, **ledger, message));
    CHECK(message.find("offset " + std::to_string(text.find('\n', at) + 1) + ": record ") != std::string::npos);
}

TEST_CASE("the key that signs is private, and is missed")
{
    Scratch scratch;
    const LedgerOptions options = small(scratch / "ledger");
    fill(options, 10);
    const std::string key = options.directory + "/checkpoint.key";
    CHECK(std::filesystem::status(key).permissions() == (std::filesystem::perms::owner_read | std::filesystem::perms::owner_write));
    Loop loop;
    const auto error_of = [&]
    {
        auto ledger = Ledger::open(loop, options);
        return ledger ? std::string{} : ledger.error().message;
    };
    std::filesystem::remove(options.directory + "/checkpoint.pub");
    CHECK(error_of().empty());
    CHECK(verified(options.directory).intact()); // the public half was written again
    std::filesystem::permissions(key, std::filesystem::perms::others_read, std::filesystem::perm_options::add);
    CHECK(error_of().find("others may read") != std::string::npos);
    std::filesystem::remove(key);
    CHECK(error_of().find("is missing") != std::string::npos);
}

TEST_CASE("with an interval the answer does not wait for the disk, and a clean stop does")
{
    Scratch scratch;
    LedgerOptions options = small(scratch / "ledger");
    options.flush = milliseconds{5};
    Loop loop;
    auto ledger = Ledger::open(loop, options);
    REQUIRE(ledger);
    Answers out;
    loop.run(append_many(loop, **ledger, 100, out, true));
    REQUIRE(out.size() == 100);
    CHECK((*ledger)->sequence() == 100);
    CHECK((*ledger)->lag() == 0);
    CHECK(verified(options.directory).records == 100);
    CHECK(verified(options.directory).intact());
}
