#include "services/logs/tailer.hpp"
#include "tests/catch.hpp"
#include "tests/unit/logs/folder.hpp"
#include <sys/stat.h>

using namespace dstack;
using namespace dstack::logs;

namespace
{
struct Bed
{
    Folder folder;
    std::string path = folder / "serial.log";
    std::unique_ptr<LineStore> store;
    std::unique_ptr<Tailer> tailer;
    TailerLimits limits;
    Bed() { restart(); }
    /// As after kill -9: everything comes from the disk again.
    void restart()
    {
        tailer.reset();
        store.reset();
        auto opened = LineStore::open(folder / "store", 8 << 20);
        REQUIRE(opened);
        store = std::move(*opened);
        tailer = std::make_unique<Tailer>(path, Channel::serial, *store, limits);
    }
    Step step()
    {
        Step all;
        for (int i = 0; i < 100; ++i)
        {
            auto one = tailer->step(1000);
            REQUIRE(one);
            all.lines += one->lines;
            all.gone = one->gone;
            for (auto& loss : one->losses) { all.losses.push_back(loss); }
            if (!one->more) { return all; }
        }
        FAIL("no end");
        return all;
    }
    std::string all() const
    {
        std::string out;
        const auto page = store->from(1, {100'000, 64 << 20});
        for (const Line& line : page->lines) { out += (line.channel == Channel::gap ? "<" + line.text + ">" : line.text) + "|"; }
        return out;
    }
};
} // namespace

TEST_CASE("a growing file is copied line by line")
{
    Bed bed;
    CHECK(bed.step().gone);
    write_file(bed.path, "one\ntw");
    CHECK(bed.step().lines == 1);
    append_file(bed.path, "o\r\n\x1b[2J\n");
    CHECK(bed.step().lines == 2);
    CHECK(bed.step().lines == 0);
    CHECK(bed.all() == "one|two|\x1b[2J|");
}

TEST_CASE("no line is lost or doubled when this process dies between any two steps")
{
    Bed bed;
    std::string expected;
    for (int i = 0; i < 50; ++i)
    {
        const std::string line = "line " + std::to_string(i);
        append_file(bed.path, line.substr(0, 3));
        bed.step();
        bed.restart();
        append_file(bed.path, line.substr(3) + "\n");
        if (i % 3 != 0) { bed.step(); }
        bed.restart();
        expected += line + "|";
    }
    bed.step();
    CHECK(bed.all() == expected);
}

TEST_CASE("rotation by renaming loses nothing")
{
    Bed bed;
    write_file(bed.path, "a\nb\n");
    bed.step();
    append_file(bed.path, "c\nlast without end");
    std::filesystem::rename(bed.path, bed.path + ".1");
    CHECK_FALSE(bed.step().gone == false); // the name is away for a moment
    write_file(bed.path, "d\n");
    CHECK(bed.step().losses.empty());
    CHECK(bed.all() == "a|b|c|last without end|d|");
}

TEST_CASE("rotation by renaming while this process is down loses nothing")
{
    Bed bed;
    write_file(bed.path, "a\nb\n");
    bed.step();
    append_file(bed.path, "c\n");
    std::filesystem::rename(bed.path, bed.path + ".1");
    write_file(bed.path, "d\n");
    bed.restart();
    CHECK(bed.step().losses.empty());
    CHECK(bed.all() == "a|b|c|d|");
}

TEST_CASE("rotation by copying and cutting loses nothing, running or not")
{
    const bool down = GENERATE(false, true);
    Bed bed;
    write_file(bed.path, "a\nb\n");
    bed.step();
    append_file(bed.path, "c\n");
    std::filesystem::copy_file(bed.path, bed.path + ".1");
    std::filesystem::resize_file(bed.path, 0);
    append_file(bed.path, "d, longer than all that was there before\n");
    if (down) { bed.restart(); }
    CHECK(bed.step().losses.empty());
    CHECK(bed.all() == "a|b|c|d, longer than all that was there before|");
}

TEST_CASE("what cannot be had any more is a gap, never silence")
{
    struct Case
    {
        bool down;
        bool other_file;
        std::string reason;
    };
    const Case cases[] = {{false, false, "truncated"}, {true, false, "truncated"}, {true, true, "rotated away"}};
    for (const Case& c : cases)
    {
        Bed bed;
        write_file(bed.path, "a\nb\n");
        bed.step();
        if (c.other_file)
        {
            write_file(bed.path + ".new", "x\n");
            std::filesystem::rename(bed.path + ".new", bed.path);
        }
        else { write_file(bed.path, "x\n"); }
        if (c.down) { bed.restart(); }
        const Step step = bed.step();
        REQUIRE(step.losses.size() == 1);
        CHECK(step.losses[0].sequence == 3);
        CHECK(step.losses[0].reason == c.reason);
        CHECK(bed.all() == "a|b|<lost an unknown number of bytes: " + c.reason + ">|x|");
    }
}

TEST_CASE("a flood is skipped ahead of, and the rest is kept")
{
    Bed bed;
    bed.limits.flood_bytes = 100'000;
    bed.limits.step_bytes = 10'000;
    bed.restart();
    std::string flood;
    for (int i = 0; i < 100'000; ++i) { flood += "line " + std::to_string(i) + "\n"; }
    write_file(bed.path, flood);
    const Step step = bed.step();
    REQUIRE(step.losses.size() == 1);
    CHECK(step.losses[0].reason == "flood");
    CHECK(step.losses[0].bytes == flood.size() - 50'000);
    const auto page = bed.store->tail({1, 1000});
    CHECK(page->lines.at(0).text == "line 99999");
    const auto first = bed.store->from(1, {2, 1000});
    CHECK(first->lines.at(0).channel == Channel::gap);
    CHECK(first->lines.at(1).text.starts_with("line "));
}

TEST_CASE("a removed file is read to its end")
{
    Bed bed;
    write_file(bed.path, "a\n");
    bed.step();
    append_file(bed.path, "b\nc");
    std::filesystem::remove(bed.path);
    CHECK(bed.step().gone);
    CHECK(bed.all() == "a|b|c|");
}

TEST_CASE("a line without an end does not grow without an end")
{
    Bed bed;
    write_file(bed.path, std::string(100'000, 'x'));
    bed.step();
    CHECK(bed.store->next() == 1 + 100'000 / max_line_bytes);
}

TEST_CASE("what is no regular file is refused")
{
    Bed bed;
    std::filesystem::create_symlink("/etc/passwd", bed.path);
    CHECK_FALSE(bed.tailer->step(1));
    std::filesystem::remove(bed.path);
    std::filesystem::create_directory(bed.path);
    CHECK_FALSE(bed.tailer->step(1));
    std::filesystem::remove(bed.path);
    REQUIRE(mkfifo(bed.path.c_str(), 0600) == 0);
    CHECK_FALSE(bed.tailer->step(1));
    CHECK(bed.all().empty());
}
