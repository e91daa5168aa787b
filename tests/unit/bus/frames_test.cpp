#include "bus/protocol/frames.hpp"
#include "tests/catch.hpp"

using namespace dstack::bus;

TEST_CASE("a frame is fields, the last of which is all the rest")
{
    struct Row
    {
        const char* frame;
        const char* version;
        const char* verb;
        bool complete;
        std::vector<std::string_view> fields; ///< behind the verb
    };
    const Row rows[] = {
        {"1\nping", "1", "ping", true, {}},
        {"1\nping\n", "1", "ping", false, {}},
        {"1\npong\n7\nknown", "1", "pong", true, {"7", "known"}},
        {"1\npong\n7", "1", "pong", false, {"7"}},
        {"1\nhello\n\n", "1", "hello", true, {"", ""}},
        {"1\nhello\n", "1", "hello", false, {""}},
        {"1\nreply\n9\nok\n{\n}\n", "1", "reply", true, {"9", "ok", "{\n}\n"}},
        {"1\npublished\na\n1:2\nb\n1:3", "1", "published", true, {"a\n1:2\nb\n1:3"}},
        {"1\nevents\nr\n1\n2\n3\n0\n0\n\n{}\n{}\n", "1", "events", true, {"r", "1", "2", "3", "0", "0", "", "{}\n{}\n"}},
        {"2\nping", "2", "ping", true, {}},
        {"1\nfrobnicate\na", "1", "frobnicate", false, {}},
        {"1", "1", "", false, {}},
        {"1\n", "1", "", false, {}},
        {"", "", "", false, {}},
        {"\n\n\n", "", "", false, {}},
    };
    for (const Row& row : rows)
    {
        CAPTURE(row.frame);
        const wire::Line line{row.frame};
        CHECK(line.version() == row.version);
        CHECK(line.verb() == row.verb);
        CHECK(line.complete() == row.complete);
        for (std::size_t i = 0; i < row.fields.size(); ++i) { CHECK(line.at(i + 1) == row.fields[i]); }
        CHECK(line.at(row.fields.size() + 1).empty());
    }
}

TEST_CASE("what is put together is taken apart again")
{
    const std::string body(70'000, 'x');
    const zmq::message_t frame = wire::line({wire::version, wire::call, "c1", "lease.list", "1", "", "", body});
    const wire::Line line{wire::text(frame)};
    REQUIRE(line.complete());
    CHECK(line.at(1) == "c1");
    CHECK(line.at(4).empty());
    CHECK(line.at(6) == body);
    CHECK(wire::joined({wire::version, wire::ping}) == "1\nping");
    CHECK(wire::text(wire::line({"", ""})) == "\n");
    CHECK_FALSE(wire::is_field("a\nb"));
}
