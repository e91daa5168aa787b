#include "services/logs/store.hpp"
#include "tests/catch.hpp"
#include "tests/unit/logs/folder.hpp"
#include <dirent.h>

using namespace dstack::logs;

namespace
{
std::vector<Line> some(std::size_t count, const std::string& text)
{
    std::vector<Line> out;
    for (std::size_t i = 0; i < count; ++i) { out.push_back({0, 1000, Channel::serial, text + std::to_string(i)}); }
    return out;
}

std::string newest_segment(const std::string& directory)
{
    std::string newest;
    for (const auto& entry : std::filesystem::directory_iterator{directory})
    {
        newest = std::max(newest, entry.path().string());
    }
    return newest;
}

std::string texts(const Page& page)
{
    std::string out;
    for (const Line& line : page.lines) { out += std::to_string(line.sequence) + ":" + line.text + " "; }
    return out;
}
} // namespace

TEST_CASE("lines are numbered, read from any place and from the end, also after reopening")
{
    const Folder folder;
    const Position position{1, 2, 30, 4, 5};
    {
        auto store = LineStore::open(folder / "s", 1 << 20);
        REQUIRE(store);
        CHECK((*store)->next() == 1);
        CHECK((*store)->position() == Position{});
        REQUIRE((*store)->append(some(3, "a"), {1, 2, 10, 0, 0}));
        REQUIRE((*store)->append(some(2, "b"), position));
    }
    auto store = LineStore::open(folder / "s", 1 << 20);
    REQUIRE(store);
    CHECK((*store)->next() == 6);
    CHECK((*store)->position() == position);
    REQUIRE((*store)->append(some(1, "c"), position));
    CHECK(texts(*(*store)->from(0, {})) == "1:a0 2:a1 3:a2 4:b0 5:b1 6:c0 ");
    CHECK(texts(*(*store)->from(5, {})) == "5:b1 6:c0 ");
    CHECK(texts(*(*store)->from(2, {2, 1000})) == "2:a1 3:a2 ");
    CHECK((*store)->from(2, {2, 1000})->next == 4);
    CHECK(texts(*(*store)->from(7, {})).empty());
    CHECK((*store)->from(7, {})->next == 7);
    CHECK(texts(*(*store)->tail({2, 100000})) == "5:b1 6:c0 ");
    CHECK((*store)->tail({2, 100000})->next == 7);
    CHECK(texts(*(*store)->tail({100, 1})) == "6:c0 "); // at least one
}

TEST_CASE("a batch that was cut off is not there, whole, after a crash")
{
    const Folder folder;
    {
        auto store = LineStore::open(folder / "s", 1 << 20);
        REQUIRE((*store)->append(some(2, "a"), {1, 2, 10, 0, 0}));
        REQUIRE((*store)->append(some(2, "b"), {1, 2, 20, 0, 0}));
    }
    const std::string segment = newest_segment(folder / "s");
    const auto size = std::filesystem::file_size(segment);
    for (std::uintmax_t cut = 1; cut < 40; ++cut)
    {
        std::filesystem::resize_file(segment, size - cut);
        {
            auto store = LineStore::open(folder / "s", 1 << 20);
            REQUIRE(store);
            CHECK((*store)->next() == 3);
            CHECK((*store)->position().offset == 10);
            REQUIRE((*store)->append(some(2, "b"), {1, 2, 20, 0, 0}));
            CHECK(texts(*(*store)->from(0, {})) == "1:a0 2:a1 3:b0 4:b1 ");
        }
        CHECK(std::filesystem::file_size(segment) == size);
    }
}

TEST_CASE("a segment that was begun and not finished is dropped")
{
    const Folder folder;
    {
        auto store = LineStore::open(folder / "s", 1 << 20);
        REQUIRE((*store)->append(some(2, "a"), {1, 2, 10, 0, 0}));
    }
    write_file(folder / "s/00000000000000000003.log", "3\t1000\tserial\tx\n");
    auto store = LineStore::open(folder / "s", 1 << 20);
    REQUIRE(store);
    CHECK((*store)->next() == 3);
    CHECK((*store)->position().offset == 10);
    REQUIRE((*store)->append(some(1, "c"), {1, 2, 20, 0, 0}));
    CHECK(texts(*(*store)->from(0, {})) == "1:a0 2:a1 3:c0 ");
}

TEST_CASE("the quota removes the oldest segments, and a reader is told")
{
    const Folder folder;
    auto store = LineStore::open(folder / "s", 64 * 1024);
    REQUIRE(store);
    const std::string text(500, 'x');
    for (int i = 0; i < 500; ++i) { REQUIRE((*store)->append(some(1, text), {1, 2, 10, 0, 0})); }
    CHECK((*store)->next() == 501);
    CHECK((*store)->bytes() <= 64 * 1024);
    CHECK((*store)->bytes() > 40 * 1024);
    const auto first = (*store)->first();
    CHECK(first > 300);
    const auto page = (*store)->from(10, {2, 10'000});
    REQUIRE(page);
    REQUIRE(page->lines.size() == 2);
    CHECK(page->lines[0].channel == Channel::gap);
    CHECK(page->lines[0].text == "lost lines 10 to " + std::to_string(first - 1) + ": quota");
    CHECK(page->lines[1].sequence == first);
    CHECK(page->next == first + 1);
    const auto tail = (*store)->tail({1000, 1 << 20});
    REQUIRE(tail);
    CHECK(tail->lines.front().sequence == first);
    CHECK(tail->lines.back().sequence == 500);
    CHECK(tail->lines.front().channel == Channel::serial);
}
