#include "services/logs/config.hpp"
#include "services/logs/lines.hpp"
#include "tests/catch.hpp"

using namespace dstack::logs;

TEST_CASE("bytes are split into lines")
{
    struct Case
    {
        std::string bytes;
        bool all;
        std::vector<std::string> lines;
        std::size_t consumed;
    };
    const std::string longest(max_line_bytes, 'x');
    const Case cases[] = {
        {"", false, {}, 0},
        {"a", false, {}, 0},
        {"a", true, {"a"}, 1},
        {"a\nb\r\nc", false, {"a", "b"}, 5},
        {"a\nb\r\nc", true, {"a", "b", "c"}, 6},
        {"\n\r\n", false, {"", ""}, 3},
        {"a\rb\n", false, {"a\rb"}, 4},
        {longest, false, {longest}, longest.size()},
        {longest + "\n", false, {longest}, longest.size() + 1},
        {longest + "yz\n", false, {longest, "yz"}, longest.size() + 3},
        {longest.substr(1), false, {}, 0},
    };
    for (const Case& c : cases)
    {
        const Split split = dstack::logs::split(c.bytes, c.all);
        CHECK(std::vector<std::string>(split.lines.begin(), split.lines.end()) == c.lines);
        CHECK(split.consumed == c.consumed);
    }
}

TEST_CASE("records are read back, and only whole ones")
{
    Line line{42, 1700000000123, Channel::serial, "text\twith \x1b[31m and \x01"};
    std::string text;
    encode(text, line);
    CHECK(text == "42\t1700000000123\tserial\ttext\twith \x1b[31m and \x01\n");
    const auto read = decode_line(std::string_view{text}.substr(0, text.size() - 1));
    REQUIRE(read);
    CHECK(read->sequence == 42);
    CHECK(read->time_ms == 1700000000123);
    CHECK(read->channel == Channel::serial);
    CHECK(read->text == line.text);
    const Position position{1, 2, 3, 4, 18446744073709551615ULL};
    std::string end;
    encode(end, position);
    CHECK(decode_position(std::string_view{end}.substr(0, end.size() - 1)) == position);
    for (const char* bad : {"", "1", "1\t2", "1\t2\tserial", "x\t2\tserial\t", "1\t2\tother\t", "-1\t2\tserial\t", "99999999999999999999\t2\tserial\t"})
    {
        INFO(bad);
        CHECK_FALSE(decode_line(bad));
    }
    for (const char* bad : {"", "@", "@\t1\t2\t3\t4", "@\t1\t2\t3\t4\t", "@\t1\t2\t3\t4\t5\t6", "@\ta\t2\t3\t4\t5"})
    {
        INFO(bad);
        CHECK_FALSE(decode_position(bad));
    }
}

TEST_CASE("a segment is recovered up to its last whole batch")
{
    std::string whole;
    encode(whole, Line{7, 1, Channel::serial, "a"});
    encode(whole, Line{8, 1, Channel::serial, "b"});
    encode(whole, Position{1, 2, 4, 0, 0});
    std::string more = whole;
    encode(more, Line{9, 1, Channel::serial, "c"});
    for (const std::string& tail : {std::string{}, more.substr(whole.size()), std::string{"9\t1\tser"}, std::string{"garbage\n@\t1\t2\t9\t0\t0\n"}})
    {
        const Recovered found = recover(whole + tail);
        CHECK(found.valid_bytes == whole.size());
        CHECK(found.last_sequence == 8);
        REQUIRE(found.position);
        CHECK(found.position->offset == 4);
    }
    CHECK_FALSE(recover("9\t1\tserial\tx\n").position);
    CHECK(recover("").valid_bytes == 0);
}

TEST_CASE("names and paths that could lead elsewhere are refused")
{
    for (const char* good : {"auth", "0b5e3a36-5a4c-4d3c-9a53-0f3d2f1f9d11", "a.b_c"}) { CHECK(is_source_name(good)); }
    for (const char* bad : {"", ".", "..", ".a", "a/b", "a b", "a\n", "\xc3\xa4"}) { CHECK_FALSE(is_source_name(bad)); }
    CHECK_FALSE(is_source_name(std::string(65, 'a')));
    for (const char* good : {"/vms/a/serial.log", "/vms/a"}) { CHECK(is_inside("/vms", good)); }
    CHECK(is_inside("/vms/", "/vms/a"));
    for (const char* bad : {"", "/vms", "/vms/", "/vmsx/a", "/vms/../etc/passwd", "/vms/a/../../b", "/vms//a", "/vms/./a", "vms/a", "/etc/passwd"})
    {
        INFO(bad);
        CHECK_FALSE(is_inside("/vms", bad));
    }
}

TEST_CASE("text for JSON")
{
    CHECK(valid_utf8("gr\xc3\xbc\xc3\x9f") == "gr\xc3\xbc\xc3\x9f");
    CHECK(valid_utf8("a\xff\x62") == "a\xef\xbf\xbd\x62");
    CHECK(valid_utf8("\xc0\xaf\xed\xa0\x80\xf4\x90\x80\x80") == []
          {
              std::string all;
              for (int i = 0; i < 9; ++i) { all += "\xef\xbf\xbd"; }
              return all;
          }());
    CHECK(valid_utf8("\xe2\x82") == "\xef\xbf\xbd\xef\xbf\xbd");
    CHECK(valid_utf8(std::string("\0\x1b", 2)) == std::string("\0\x1b", 2));
    CHECK(json_size("a\"\n\x1b") == 1 + 2 + 6 + 6);
    CHECK(rfc3339(1700000000123) == "2023-11-14T22:13:20.123Z");
    CHECK(gap_text(4, 9, 0, "quota") == "lost lines 4 to 9: quota");
    CHECK(gap_text(4, 4, 512, "flood") == "lost 512 bytes: flood");
    CHECK(gap_text(4, 4, 0, "truncated") == "lost an unknown number of bytes: truncated");
}

TEST_CASE("segments are named by their first line")
{
    CHECK(segment_name(42) == "00000000000000000042.log");
    CHECK(segment_first("00000000000000000042.log") == 42);
    for (const char* bad : {"42.log", "0000000000000000004x.log", "source.json", "00000000000000000042.tmp"}) { CHECK_FALSE(segment_first(bad)); }
}

TEST_CASE("configuration")
{
    const auto good = parse_config("[logs]\nsocket = \"/s\"\nstore_dir = \"/d\"\nvm_root = \"/v\"\nsource_bytes = 65536\n[bus]\ndirectory = \"/b\"\n");
    REQUIRE(good);
    CHECK(good->source_bytes == 65536);
    CHECK(good->bus_directory == "/b");
    CHECK_FALSE(parse_config("[logs]\nstore_dir = \"/d\"\nvm_root = \"/v\"\n"));
    CHECK_FALSE(parse_config("[logs]\nsocket = \"/s\"\nvm_root = \"/v\"\n"));
    CHECK_FALSE(parse_config("[logs]\nsocket = \"/s\"\nstore_dir = \"/d\"\nvm_root = \"/v\"\nquota = 1\n"));
    CHECK_FALSE(parse_config(""));
}
