#include "services/auth/policy.hpp"
#include "tests/catch.hpp"
#include "tests/unit/auth/sample.hpp"

using namespace dstack::auth;
using sample::hex;

namespace
{
Hash hash(char digit)
{
    Hash out{};
    unhex(hex(digit), out);
    return out;
}
AppId id(char digit)
{
    AppId out{};
    unhex(hex(digit, 40), out);
    return out;
}
} // namespace

TEST_CASE("auth-simple's document loads as it is")
{
    auto policy = parse_policy(R"({
      "gatewayAppId": "0xgateway", "kmsContractAddr": "0x1234", "chainId": 8453, "appImplementation": "0xabcd",
      "osImages": ["0x)" + hex('B') +
                               R"(", ")" + hex('1') + R"("],
      "allowedTcbStatuses": ["UpToDate", "SWHardeningNeeded"], "allowedAdvisoryIds": ["INTEL-SA-00828"],
      "kms": {"mrAggregated": ["0x)" +
                               hex('a') + R"("], "devices": ["0x)" + hex('e') + R"("], "allowAnyDevice": false},
      "apps": {"0x)" + hex('A', 40) +
                               R"(": {"composeHashes": ["0x)" + hex('d') +
                               R"("], "devices": [], "allowAnyDevice": true}}
    })");
    REQUIRE(policy);
    CHECK(policy->gateway_app_id == "0xgateway");
    CHECK(policy->kms_contract_address == "0x1234");
    CHECK(policy->chain_id == 8453);
    CHECK(policy->app_implementation == "0xabcd");
    CHECK(policy->os_images.contains(hash('b')));
    CHECK(policy->os_images.contains(hash('1')));
    CHECK_FALSE(policy->os_images.contains(hash('2')));
    CHECK(policy->tcb_statuses.contains("SWHardeningNeeded"));
    CHECK(policy->advisory_ids.contains("INTEL-SA-00828"));
    CHECK(policy->kms_aggregated_mrs.contains(hash('a')));
    CHECK(policy->kms_devices.contains(hex('e')));
    CHECK_FALSE(policy->kms_devices.contains(hex('f')));
    REQUIRE(policy->apps.contains(id('a')));
    CHECK(policy->apps.at(id('a')).compose_hashes.contains(hash('d')));
    CHECK(policy->apps.at(id('a')).devices.any);
}

TEST_CASE("upstream dstackup's allowlist loads as it is, and what it leaves out denies")
{
    auto policy = parse_policy(
        R"({"osImages":[],"gatewayAppId":"","kms":{"mrAggregated":[],"devices":[],"allowAnyDevice":true},"apps":{}})");
    REQUIRE(policy);
    CHECK_FALSE(policy->os_images.contains(hash('b')));
    CHECK_FALSE(policy->kms_aggregated_mrs.contains(hash('a')));
    CHECK(policy->kms_devices.contains(hex('e')));
    CHECK(policy->tcb_statuses.contains("UpToDate"));
    CHECK_FALSE(policy->tcb_statuses.contains(""));
    CHECK_FALSE(policy->advisory_ids.contains("INTEL-SA-00828"));

    auto empty = parse_policy("{}");
    REQUIRE(empty);
    CHECK_FALSE(empty->kms_devices.contains(hex('e')));
    CHECK(empty->apps.empty());

    auto no_status = parse_policy(R"({"allowedTcbStatuses":[]})");
    REQUIRE(no_status);
    CHECK_FALSE(no_status->tcb_statuses.contains("UpToDate"));
}

TEST_CASE("any must be written down")
{
    auto policy =
        parse_policy(R"({"osImages":{"any":true},"allowedAdvisoryIds":{"any":true},"kms":{"mrAggregated":{"any":true}},
      "apps":{")" + hex('1', 40) +
                     R"(":{"composeHashes":{"any":true},"devices":{"any":true}}}})");
    REQUIRE(policy);
    CHECK(policy->os_images.contains(hash('7')));
    CHECK(policy->advisory_ids.contains("X"));
    CHECK(policy->kms_aggregated_mrs.contains(hash('7')));
    CHECK(policy->apps.at(id('1')).compose_hashes.contains(hash('7')));
    CHECK(policy->apps.at(id('1')).devices.contains(hex('7')));
    for (const char* text : {R"({"osImages":{"any":false}})", R"({"osImages":{}})"})
    {
        auto closed = parse_policy(text);
        REQUIRE(closed);
        CHECK_FALSE(closed->os_images.contains(hash('7')));
    }
    // the order of the two keys does not matter
    for (const char* text :
         {R"({"kms":{"devices":[],"allowAnyDevice":true}})", R"({"kms":{"allowAnyDevice":true,"devices":[]}})"})
    {
        auto open = parse_policy(text);
        REQUIRE(open);
        CHECK(open->kms_devices.contains(hex('7')));
    }
}

TEST_CASE("an entry may end; several for one value last as long as the longest")
{
    auto policy = parse_policy(R"({"osImages":[{"value":"0x)" + hex('B') +
                               R"(","expires":"2026-01-01T00:00:00Z","reason":"a try"},{"value":")" + hex('b') +
                               R"(","expires":"2026-01-02T00:00:00+01:00"},{"value":")" + hex('c') + R"("}],
      "tcbGrace":{"status":"OutOfDate","until":"2026-01-01T00:00:00.500Z"},
      "kms":{"mrAggregated":{"any":true,"expires":"2026-01-01T00:00:00Z"},"devices":{"any":false,"expires":"2026-01-01T00:00:00Z"}}})");
    REQUIRE(policy);
    constexpr std::uint64_t new_year = 1767225600000; // 2026-01-01T00:00:00Z
    CHECK(policy->os_images.allows(hash('b'), new_year - 1));
    CHECK(policy->os_images.allows(hash('b'), new_year + 23 * 3'600'000 - 1));
    CHECK_FALSE(policy->os_images.allows(hash('b'), new_year + 23 * 3'600'000));
    CHECK(policy->os_images.contains(hash('c')));
    CHECK_FALSE(policy->os_images.allows(hash('d'), 0));
    CHECK(policy->tcb_statuses.allows("UpToDate", new_year * 2));
    CHECK(policy->tcb_statuses.allows("OutOfDate", new_year + 499));
    CHECK_FALSE(policy->tcb_statuses.allows("OutOfDate", new_year + 500));
    CHECK(policy->kms_aggregated_mrs.allows(hash('7'), new_year - 1));
    CHECK_FALSE(policy->kms_aggregated_mrs.allows(hash('7'), new_year));
    CHECK_FALSE(policy->kms_devices.allows(hex('7'), 0));

    // the end of time itself is an end, not none
    auto epoch = parse_policy(R"({"osImages":[{"value":")" + hex('b') + R"(","expires":"1970-01-01T00:00:00Z"}]})");
    REQUIRE(epoch);
    CHECK_FALSE(epoch->os_images.allows(hash('b'), 1000));

    auto graces = parse_policy(
        R"({"tcbGrace":[{"status":"A","until":"2026-01-01T00:00:00Z"},{"status":"B","until":"2026-01-01T00:00:00Z"}],
      "allowedTcbStatuses":[]})");
    REQUIRE(graces);
    CHECK(graces->tcb_statuses.allows("A", 1));
    CHECK(graces->tcb_statuses.allows("B", 1));
    CHECK_FALSE(graces->tcb_statuses.allows("UpToDate", 1));
}

TEST_CASE("times are RFC 3339, with an offset or without")
{
    constexpr std::uint64_t noon = 1767268800000; // 2026-01-01T12:00:00Z
    CHECK(parse_time("2026-01-01T12:00:00Z") == noon);
    CHECK(parse_time("2026-01-01t12:00:00z") == noon);
    CHECK(parse_time("2026-01-01 13:30:00.25+01:30") == noon + 250);
    CHECK(parse_time("2026-01-01T04:00:00.1234567-08:00") == noon + 123);
    for (const char* wrong : {"", "2026-01-01", "2026-01-01T12:00:00", "2026-01-01T24:00:00Z", "2026-13-01T12:00:00Z", "2026-02-30T12:00:00Z",
                              "2026-01-01T12:60:00Z", "2026-01-01T12:00:00.Z", "2026-01-01T12:00:00+1:00", "2026-01-01T12:00:00ZZ",
                              "1970-01-01T00:00:00+01:00", "2026-01-01T1:00:000Z", "2026-01-01T-1:00:00Z", " 2026-01-01T12:00:00Z"})
    {
        CAPTURE(wrong);
        CHECK_FALSE(parse_time(wrong));
    }
}

TEST_CASE("one mistake and the document is no policy")
{
    struct Row
    {
        std::string text;
        std::string message;
    };
    const std::string app = hex('1', 40);
    const Row rows[] = {
        {"", "no valid JSON: empty"},
        {"{\n  \"osImages\": [,]\n}", "no valid JSON at line 2, column 16"},
        {"{} {}", "no valid JSON at line 1, column 4"},
        {"[]", "policy: must be an object, not an array"},
        {R"({"osImage":[]})",
         "osImage: unknown key; known: osImages, allowedTcbStatuses, allowedAdvisoryIds, tcbGrace, gatewayAppId, "
         "kmsContractAddr, chainId, appImplementation, kms, apps (line 1)"},
        {R"({"osImages":[],"osImages":[]})", "policy: the key \"osImages\" comes twice"},
        {R"({"osImages":null})", "osImages: must be an array or {\"any\": true}, not null"},
        {R"({"osImages":"any"})", "osImages: must be an array or {\"any\": true}, not a string"},
        {R"({"osImages":{"any":"yes"}})", "osImages.any: must be true or false, not a string"},
        {R"({"osImages":{"all":true}})", "osImages.all: unknown key; known: any, expires, reason"},
        {R"({"osImages":[")" + hex('b', 62) + R"("]})", "osImages[0]: must be 64 hex digits, has 62"},
        {R"({"osImages":[")" + hex('b') + R"(",""]})", "osImages[1]: must be 64 hex digits, has 0"},
        {R"({"osImages":[{"hash":"x"}]})", "osImages[0].hash: unknown key; known: value, expires, reason"},
        {R"({"osImages":[{}]})", "osImages[0]: needs a \"value\""},
        {R"({"osImages":[{"expires":"2026-01-01T00:00:00Z"}]})", "osImages[0]: needs a \"value\""},
        {R"({"osImages":[{"value":"x"}]})", "osImages[0].value: must be 64 hex digits, has other characters"},
        {R"({"osImages":[{"value":")" + hex('b') + R"(","expires":"tomorrow"}]})",
         "osImages[0].expires: must be a time such as 2026-12-24T18:00:00Z"},
        {R"({"osImages":[{"value":")" + hex('b') + R"(","expires":1}]})", "osImages[0].expires: must be a string, not a number"},
        {R"({"osImages":[{"value":")" + hex('b') + R"(","expires":null}]})", "osImages[0].expires: must be a string, not null"},
        {R"({"osImages":[{"value":")" + hex('b') + R"(","value":")" + hex('b') + R"("}]})",
         "osImages[0]: the key \"value\" comes twice"},
        {R"({"osImages":[7]})", "osImages[0]: must be a string or an object with \"value\", not a number"},
        {R"({"tcbGrace":"OutOfDate"})",
         "tcbGrace: must be an object with \"status\" and \"until\", or an array of such, not a string"},
        {R"({"tcbGrace":{"status":"OutOfDate"}})", "tcbGrace: needs \"status\" and \"until\""},
        {R"({"tcbGrace":[{"until":"2026-01-01T00:00:00Z"}]})", "tcbGrace[0]: needs \"status\" and \"until\""},
        {"{\"osImages\":[],}", "no valid JSON at line 1, column 16"},
        {R"({"osImages":["\ud800"]})", "no valid JSON at line 1, column 21: half a character"},
        {"{\"osImages\":[\"a\nb\"]}", "no valid JSON at line 1, column 16: a control character in a text"},
        {std::string{"{\"osImages\":[]}\0", 16}, "no valid JSON at line 1, column 16"},
        {"{\"gatewayAppId\":\"\xff\"}", "no valid JSON: not UTF-8"},
        {"{\"osImages\":" + std::string(40, '[') + std::string(40, ']') + "}",
         "osImages[0]: must be a string or an object with \"value\", not an array"},
        {R"({"chainId":01})", "no valid JSON at line 1, column 12"},
        {R"({"chainId":1e3})", "chainId: must be a whole number that is not negative"},
        {R"({"chainId":99999999999999999999})", "chainId: must be a whole number that is not negative"},
        {R"({"allowedTcbStatuses":[""]})", "allowedTcbStatuses[0]: must be printable ASCII and not empty"},
        {R"({"gatewayAppId":1})", "gatewayAppId: must be a string, not a number"},
        {R"({"chainId":-1})", "chainId: must be a whole number that is not negative"},
        {R"({"chainId":"1"})", "chainId: must be a whole number that is not negative"},
        {R"({"chainId":1.5})", "chainId: must be a whole number that is not negative"},
        {R"({"kms":[]})", "kms: must be an object, not an array"},
        {R"({"kms":{"mr":[]}})", "kms.mr: unknown key; known: mrAggregated, devices, allowAnyDevice"},
        {R"({"kms":{"devices":["ab"]}})", "kms.devices[0]: must be 64 or 128 hex digits"},
        {R"({"kms":{"allowAnyDevice":1}})", "kms.allowAnyDevice: must be true or false, not a number"},
        {R"({"apps":[]})", "apps: must be an object, not an array"},
        {R"({"apps":{"app":{}}})", "apps.app: an app id must be 40 hex digits, has other characters"},
        {R"({"apps":{")" + app + R"(":{},"0x)" + app + R"(":{}}})", "apps.0x" + app + ": this app comes twice"},
        {R"({"apps":{")" + app + R"(":{"hashes":[]}}})",
         "apps." + app + ".hashes: unknown key; known: composeHashes, devices, allowAnyDevice"},
        {R"({"apps":{")" + app + R"(":{"composeHashes":[")" + hex('d', 63) + R"("]}}})",
         "apps." + app + ".composeHashes[0]: must be 64 hex digits, has 63"},
    };
    for (const Row& row : rows)
    {
        CAPTURE(row.text);
        auto policy = parse_policy(row.text);
        REQUIRE_FALSE(policy);
        const bool has_place = row.message.starts_with("no valid JSON") || row.message.ends_with(')');
        CHECK(policy.error().message == row.message + (has_place ? "" : " (line 1)"));
    }
}
