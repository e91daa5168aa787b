#include "services/logs/event_stream.hpp"
#include "tests/catch.hpp"

using namespace dstack;
using namespace dstack::logs;
using Kind = bus::From::Kind;

namespace
{
http::Request get(std::string target, http::Headers headers = {})
{
    http::Request request;
    request.method = "GET";
    request.target = std::move(target);
    request.headers = std::move(headers);
    return request;
}
} // namespace

TEST_CASE("where a stream begins")
{
    struct Row
    {
        const char* from;
        const char* last_id;
        bool good;
        Kind kind;
        std::uint64_t number; ///< sequence or time
    };
    const Row rows[] = {
        {"", "", true, Kind::now, 0},
        {"now", "", true, Kind::now, 0},
        {"0", "", true, Kind::beginning, 0},
        {"7:5", "", true, Kind::cursor, 5},
        {"0", "7:9", true, Kind::cursor, 9},
        {"nonsense", "7:9", true, Kind::cursor, 9}, // the client's place counts
        {"2023-11-14T22:13:20Z", "", true, Kind::time, 1'700'000'000'000},
        {"2023-11-14T22:13:20.007Z", "", true, Kind::time, 1'700'000'000'007},
        {"yesterday", "", false, Kind::now, 0},
        {"7:", "", false, Kind::now, 0},
        {"", "x", false, Kind::now, 0},
        {"", "1:2:3", false, Kind::now, 0},
    };
    for (const Row& row : rows)
    {
        CAPTURE(row.from, row.last_id);
        http::Headers headers;
        if (*row.last_id != '\0') { headers.add("Last-Event-ID", row.last_id); }
        const auto query = parse_event_query(get(std::string{"/events?from="} + row.from, std::move(headers)));
        REQUIRE(static_cast<bool>(query) == row.good);
        if (!query) { continue; }
        CHECK(query->from.kind == row.kind);
        CHECK((row.kind == Kind::time ? query->from.time_ms : query->from.cursor.sequence) == row.number);
    }
}

TEST_CASE("filters of a stream")
{
    const auto query = parse_event_query(get("/events?type=vm.&subject=a%20b&source=/dstack/auth&severity=warning&other=1"));
    REQUIRE(query);
    CHECK(query->filter.type_prefix == "vm.");
    CHECK(query->filter.subject == "a b");
    CHECK(query->filter.source == "auth");
    CHECK(query->filter.min_severity == "warning");
    CHECK(!parse_event_query(get("/events?severity=loud")));
    CHECK(!parse_event_query(get("/events?subject=" + std::string(300, 'x'))));
}

TEST_CASE("tokens")
{
    struct Row
    {
        const char* target;
        const char* field;
        const char* token;
    };
    const Row rows[] = {
        {"/events", "Bearer abc", "abc"},
        {"/events", "bearer   abc ", "abc"},
        {"/events", "Basic abc", ""},
        {"/events", "abc", ""},
        {"/events", "", ""},
        {"/events?access_token=abc", "", "abc"},
        {"/events?access_token=abc", "Bearer other", "other"},
    };
    for (const Row& row : rows)
    {
        CAPTURE(row.target, row.field);
        http::Headers headers;
        if (*row.field != '\0') { headers.add("Authorization", row.field); }
        CHECK(presented_token(get(row.target, std::move(headers))) == row.token);
    }
    CHECK(token_matches("abc", "abc"));
    CHECK(!token_matches("abd", "abc"));
    CHECK(!token_matches("ab", "abc"));
    CHECK(!token_matches("", ""));
    CHECK(!token_matches("abc", ""));
}

TEST_CASE("blocks of a stream")
{
    bus::EventRecord event;
    event.cursor = {7, 5};
    event.envelope = R"({"type":"x"})";
    CHECK(sse_block(event) == "id: 7:5\ndata: {\"type\":\"x\"}\n\n");
    event.envelope = "a\nid: 9:9\r\nb";
    CHECK(sse_block(event) == "id: 7:5\ndata: a\ndata: id: 9:9\ndata: \ndata: b\n\n"); // nothing inside makes fields of its own
    CHECK(sse_block(bus::Gap{1, 4, "retention\n"}) ==
          "event: gap\ndata: {\"schema\":\"dstack.gap/v1\",\"from\":1,\"to\":4,\"reason\":\"retention\\n\"}\n\n");
    CHECK(sse_heartbeat({7, 6}) == ": still here\nid: 7:6\n\n");
    CHECK(sse_heartbeat({}) == ": still here\n\n");
    CHECK(sse_block(bus::CaughtUp{{7, 6}}) == "event: caught_up\nid: 7:6\ndata: {\"cursor\":\"7:6\"}\n\n");
}
