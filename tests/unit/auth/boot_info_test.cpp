#include "services/auth/boot_info.hpp"
#include "tests/catch.hpp"
#include "tests/unit/auth/sample.hpp"

using namespace dstack::auth;
using sample::hex;

TEST_CASE("a body as the KMS posts it is read")
{
    BootInfoReader reader;
    auto boot = reader.read(sample::body("advisoryIds", R"(["INTEL-SA-00828","INTEL-SA-00837"])"));
    REQUIRE(boot);
    CHECK(boot->tee_variant == "dstack-tdx");
    CHECK(boot->mr_aggregated == hex('a'));
    CHECK(boot->os_image_hash == hex('b'));
    CHECK(boot->mr_system == hex('c'));
    CHECK(boot->app_id == hex('1', 40));
    CHECK(boot->compose_hash == hex('d'));
    CHECK(boot->instance_id == hex('2', 40));
    CHECK(boot->device_id == hex('e'));
    CHECK(boot->tcb_status == "UpToDate");
    CHECK(boot->advisory_ids == std::vector<std::string>{"INTEL-SA-00828", "INTEL-SA-00837"});
}

TEST_CASE("what an old or another KMS sends is tolerated")
{
    BootInfoReader reader;
    for (const char* drop : {"teeVariant", "tcbStatus", "advisoryIds", "mrSystem", "keyProviderInfo"})
    {
        CAPTURE(drop);
        CHECK(reader.read(sample::body("", "", drop)));
    }
    const std::pair<const char*, std::string> rows[] = {
        {"osImageHash", "\"\""},
        {"instanceId", "\"\""},
        {"deviceId", "\"" + hex('f', 128) + "\""},
        {"keyProviderInfo", "\"7b7d\""},
        {"composeHash", "\"0x" + hex('D') + "\""},
        {"tcbStatus", "\"\""},
    };
    for (const auto& [key, value] : rows)
    {
        CAPTURE(key, value);
        CHECK(reader.read(sample::body(key, value)));
    }
    auto upper = reader.read(sample::body("composeHash", "\"0X" + hex('D') + "\""));
    REQUIRE(upper);
    CHECK(upper->compose_hash == hex('d'));
    std::string unknown = sample::body();
    unknown.insert(1, R"("future":{"a":[1,2,{"b":null}]},)");
    CHECK(reader.read(unknown));
}

TEST_CASE("anything else is refused by name")
{
    struct Row
    {
        std::string body;
        std::string message;
    };
    std::string twice = sample::body();
    twice.insert(1, R"("composeHash":")" + hex('9') + R"(",)");
    const Row rows[] = {
        {"", "no valid JSON: empty"},
        {"{", "no valid JSON at line 1, column 2"},
        {"null", "body: must be an object, not null"},
        {"[]", "body: must be an object, not an array"},
        {sample::body() + "x", "no valid JSON at line 1, column " + std::to_string(sample::body().size() + 1)},
        {sample::body() + "{}", "no valid JSON at line 1, column " + std::to_string(sample::body().size() + 1)},
        {std::string(40, '['), "body: must be an object, not an array"},
        {std::string{"{}\0", 3}, "no valid JSON at line 1, column 3"},
        {std::string{"\0", 1}, "no valid JSON at line 1, column 1"},
        {R"({"a":)" + std::string(40, '[') + std::string(40, ']') + "}", "no valid JSON: nested too deeply"},
        {sample::body("tcbStatus", "\"\xff\""), "no valid JSON: not UTF-8"},
        {twice, "body: the key \"composeHash\" comes twice"},
        {sample::body("composeHash", "\"" + hex('d', 62) + "\""), "composeHash: must be 64 hex digits, has 62"},
        {sample::body("composeHash", "\"" + hex('d', 66) + "\""), "composeHash: must be 64 hex digits, has 66"},
        {sample::body("composeHash", "\"" + hex('g') + "\""),
         "composeHash: must be 64 hex digits, has other characters"},
        {sample::body("composeHash", "\" " + hex('d') + "\""),
         "composeHash: must be 64 hex digits, has other characters"},
        {sample::body("composeHash", "\"" + hex('d', 63) + "\\u0000\""),
         "composeHash: must be 64 hex digits, has other characters"},
        {sample::body("composeHash", "\"\""), "composeHash: must be 64 hex digits, has 0"},
        {sample::body("composeHash", "null"), "composeHash: must be a string, not null"},
        {sample::body("composeHash", "[\"" + hex('d') + "\"]"), "composeHash: must be a string, not an array"},
        {sample::body("appId", "\"" + hex('1') + "\""), "appId: must be 40 hex digits, has 64"},
        {sample::body("deviceId", "\"\""), "deviceId: must be 64 hex digits, has 0"},
        {sample::body("deviceId", "\"" + hex('e', 96) + "\""), "deviceId: must be 64 hex digits, has 96"},
        {sample::body("mrAggregated", "\"\""), "mrAggregated: must be 64 hex digits, has 0"},
        {sample::body("tcbStatus", "1"), "tcbStatus: must be a string, not a number"},
        {sample::body("tcbStatus", "null"), "tcbStatus: must be a string, not null"},
        {sample::body("tcbStatus", "\"Up\\u001bToDate\""), "tcbStatus: must be at most 64 printable ASCII characters"},
        {sample::body("advisoryIds", "{}"), "advisoryIds: must be an array of strings, not an object"},
        {sample::body("advisoryIds", "[1]"), "advisoryIds[0]: must be a string, not a number"},
        {sample::body("keyProviderInfo", "\"abc\""), "keyProviderInfo: must be an even number of hex digits"},
    };
    BootInfoReader reader;
    for (const Row& row : rows)
    {
        CAPTURE(row.body);
        auto boot = reader.read(row.body);
        REQUIRE_FALSE(boot);
        CHECK(boot.error().message == row.message);
    }
    for (const char* drop : {"mrAggregated", "osImageHash", "appId", "composeHash", "instanceId", "deviceId"})
    {
        auto boot = reader.read(sample::body("", "", drop));
        REQUIRE_FALSE(boot);
        CHECK(boot.error().message == std::string{drop} + ": missing");
    }
    // the reader is as good as new after a refusal
    CHECK(reader.read(sample::body()));
}
