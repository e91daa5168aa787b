#include "bus/broker/envelope.hpp"
#include "bus/broker/live.hpp"
#include "tests/catch.hpp"
#include <nlohmann/json.hpp>

using namespace dstack;

TEST_CASE("an envelope is the CloudEvent that was published")
{
    struct Row
    {
        std::string subject;
        std::uint64_t time_ms;
        std::string time;
    };
    const std::string control{"a\"b\\c\n\x01", 7};
    const std::vector<Row> rows{{"v1", 0, "1970-01-01T00:00:00.000Z"},
                                {"", 1'700'000'000'123, "2023-11-14T22:13:20.123Z"},
                                {control, 1'700'000'000'999, "2023-11-14T22:13:20.999Z"},
                                {"päckchen", 1'700'000'001'007, "2023-11-14T22:13:21.007Z"}};
    for (const Row& row : rows)
    {
        INFO(row.subject);
        const bus::EventHead head{.id = "i-1", .type = "vm.ready", .service = "vmm-local", .subject = row.subject, .severity = "info",
                                  .time_ms = row.time_ms, .traceparent = "00-a-b-01", .data = R"({"n":1})"};
        std::string line = bus::begin_envelope(head);
        bus::end_envelope(line, 7, 42);
        CHECK(line.find('\n') == std::string::npos);
        const auto event = nlohmann::json::parse(line);
        CHECK(event == nlohmann::json{{"specversion", "1.0"}, {"id", "i-1"}, {"source", "/dstack/vmm-local"}, {"type", "vm.ready"},
                                      {"subject", row.subject}, {"time", row.time}, {"datacontenttype", "application/json"},
                                      {"severity", "info"}, {"traceparent", "00-a-b-01"}, {"data", {{"n", 1}}}, {"sequence", "7:42"}});
    }
}

TEST_CASE("a subject that is not UTF-8 cannot spoil the line")
{
    const bus::EventHead head{.id = "i", .type = "t", .service = "s", .subject = "\xff\xfe", .severity = "info", .time_ms = 1, .traceparent = {}, .data = "{}"};
    std::string line = bus::begin_envelope(head);
    bus::end_envelope(line, 1, 1);
    CHECK(nlohmann::json::accept(line));
}

TEST_CASE("what is one JSON object")
{
    for (const char* good : {"{}", " {\"a\":[1,2,{\"b\":null}]} ", "{\"\\u00e4\":\"\xc3\xa4\"}"})
    {
        INFO(good);
        CHECK(bus::is_json_object(good));
    }
    for (const char* bad : {"", "[]", "1", "{", "{}{}", "{} x", "{\"a\":1,}", "{\"a\":\"\xff\"}", "{'a':1}", "{\"a\":01}", "{\"a\":\"\n\"}"})
    {
        INFO(bad);
        CHECK_FALSE(bus::is_json_object(bad));
    }
    CHECK_FALSE(bus::is_json_object(std::string(100'000, '[')));
    CHECK(bus::is_json_object(std::string("{\"a\":\"") + std::string(200'000, 'x') + "\"}"));
}

TEST_CASE("few subscribers are told at once, many in groups")
{
    const std::vector<std::pair<std::size_t, int>> rows{{0, 0}, {1, 0}, {19, 0}, {20, 1}, {100, 5}, {320, 10}, {100'000, 10}};
    for (const auto& [subscribers, pause] : rows)
    {
        INFO(subscribers);
        CHECK(bus::LiveStream::pause(subscribers).count() == pause);
    }
}
