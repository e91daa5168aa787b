#include "bus/schema/all.hpp"
#include "bus/schema/catalog.hpp"
#include "tests/catch.hpp"
#include <set>

using namespace dstack;
using namespace dstack::schema;

TEST_CASE("golden: a command with a list keeps its bytes")
{
    LeaseReserve reserve;
    reserve.key = "k";
    reserve.owner = "hello";
    reserve.wishes = {{"cid", "", "", 0, ""}, {"port", "tcp", "127.0.0.1", 8080, "80/tcp"}};
    const std::string golden =
        R"({"key":"k","owner":"hello","wishes":[{"kind":"cid","protocol":"","address":"","value":0,"purpose":"","privileged":false},)"
        R"({"kind":"port","protocol":"tcp","address":"127.0.0.1","value":8080,"purpose":"80/tcp","privileged":false}],"ttl_ms":600000})";
    CHECK(to_json(reserve) == golden);
    auto back = from_json<LeaseReserve>("lease.reserve", golden);
    REQUIRE(back);
    CHECK(to_json(*back) == golden);
}

TEST_CASE("golden: an event keeps its bytes")
{
    ServiceDown down;
    down.service = "auth";
    down.pid = 7;
    down.reason = "process \"exited\"\n";
    CHECK(to_json(down) == R"({"service":"auth","pid":7,"reason":"process \"exited\"\n"})");
}

TEST_CASE("decoding is strict about what it needs and indifferent to what it does not know")
{
    struct Row
    {
        const char* json;
        const char* message; ///< empty: accepted
    };
    const Row rows[] = {
        {R"({"key":"k","owner":"o","wishes":[]})", ""},
        {R"({"key":"k","owner":"o","wishes":[],"later":{"x":[1,2]}})", ""},
        {R"({"key":"k","owner":"o","wishes":[{"kind":"port","value":4294967295}]})", ""},
        {R"({"owner":"o","wishes":[]})", "t: key is missing"},
        {R"({"key":7,"owner":"o","wishes":[]})", "t: key must be a string"},
        {R"({"key":null,"owner":"o","wishes":[]})", "t: key must be a string"},
        {R"({"key":"k","owner":"o","wishes":{}})", "t: wishes must be a list of objects"},
        {R"({"key":"k","owner":"o","wishes":[1]})", "t: wishes must be a list of objects"},
        {R"({"key":"k","owner":"o","wishes":[{}]})", "t: wishes[0].kind is missing"},
        {R"({"key":"k","owner":"o","wishes":[{"kind":"port","value":4294967296}]})",
         "t: wishes[0].value must be a whole number from 0 to 4294967295"},
        {R"({"key":"k","owner":"o","wishes":[{"kind":"port","value":-1}]})",
         "t: wishes[0].value must be a whole number from 0 to 4294967295"},
        {R"({"key":"k","owner":"o","wishes":[{"kind":"port","value":1.5}]})",
         "t: wishes[0].value must be a whole number from 0 to 4294967295"},
        {R"([])", "t: not a JSON object"},
        {R"({"key":"k")", "t: not a JSON object"},
        {"", "t: not a JSON object"},
    };
    for (const Row& row : rows)
    {
        CAPTURE(row.json);
        auto value = from_json<LeaseReserve>("t", row.json);
        CHECK((value ? "" : value.error().message) == row.message);
        if (!value) { CHECK(value.error().code == Errc::invalid_argument); }
    }
}

TEST_CASE("text that is no UTF-8 is replaced, not refused")
{
    ServiceDown down;
    down.reason = "a\xff";
    CHECK(to_json(down).find("a\xef\xbf\xbd") != std::string::npos);
}

TEST_CASE("the catalogue names each word once, and every word has an owner")
{
    const std::set<std::string_view> services{"bus", "auth", "allocator", "kms-supervisor", "logs", "deployer", "vmm-local", "kms-local"};
    std::set<std::string_view> names;
    for (const EventEntry& entry : events())
    {
        CHECK(names.insert(entry.type.name).second);
        CHECK(services.contains(entry.type.emitter));
        CHECK(find_event(entry.type.name) == &entry.type);
    }
    for (const CommandEntry& entry : commands())
    {
        CHECK(names.insert(entry.type.name).second);
        CHECK(services.contains(entry.type.target));
        CHECK(find_command(entry.type.name) == &entry.type);
        // Somebody may send it.
        CHECK((entry.type.role != Role::none || !entry.type.services.empty()));
    }
    CHECK(find_event("lease.reserve") == nullptr);
    CHECK(find_command("lease.granted") == nullptr);
}
