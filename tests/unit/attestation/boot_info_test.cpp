#include "shared/attestation/boot_info.hpp"
#include "tests/catch.hpp"

using namespace dstack;
using namespace dstack::attestation;

namespace
{

std::string hex(char digit, std::size_t bytes) { return std::string(bytes * 2, digit); }

BootInfo example()
{
    BootInfo info;
    info.tee_variant = "dstack-tdx";
    info.mr_aggregated = hex('1', 32);
    info.os_image_hash = hex('2', 32);
    info.mr_system = hex('3', 32);
    info.app_id = hex('4', 20);
    info.compose_hash = hex('5', 32);
    info.instance_id = hex('6', 20);
    info.device_id = hex('7', 32);
    info.tcb_status = "UpToDate";
    info.advisory_ids = {"INTEL-SA-1"};
    return info;
}

} // namespace

TEST_CASE("boot info is sent with upstream's keys in upstream's order")
{
    CHECK(to_json(example()) == R"({"teeVariant":"dstack-tdx","mrAggregated":")" + hex('1', 32) +
                                    R"(","osImageHash":")" + hex('2', 32) + R"(","mrSystem":")" + hex('3', 32) +
                                    R"(","appId":")" + hex('4', 20) + R"(","composeHash":")" + hex('5', 32) +
                                    R"(","instanceId":")" + hex('6', 20) + R"(","deviceId":")" + hex('7', 32) +
                                    R"(","keyProviderInfo":"","tcbStatus":"UpToDate","advisoryIds":["INTEL-SA-1"]})");
}

TEST_CASE("boot info reads back")
{
    const auto again = boot_info_from_json(to_json(example()));
    REQUIRE(again);
    CHECK(*again == example());
    auto snp = example();
    snp.device_id = hex('8', 64);
    CHECK(boot_info_from_json(to_json(snp)));
}

TEST_CASE("boot info that is not what it should be is refused with its key")
{
    struct Case
    {
        std::string from;        ///< replaced in the example ...
        std::string to;          ///< ... by this
        std::string_view reason; ///< empty: accepted
    };
    const Case cases[] = {
        {"\"teeVariant\":\"dstack-tdx\",", "", ""},
        {",\"tcbStatus\":\"UpToDate\"", "", ""},
        {",\"advisoryIds\":[\"INTEL-SA-1\"]", "", ""},
        {"\"mrSystem\":\"" + hex('3', 32) + "\",", "", ""},
        {"\"appId\":\"" + hex('4', 20) + "\",", "", "missing key appId"},
        {"\"" + hex('4', 20) + "\"", "\"\"", "appId: expected 20 bytes"},
        {"\"" + hex('4', 20) + "\"", "\"44\"", "appId: expected 20 bytes"},
        {"\"" + hex('6', 20) + "\"", "\"\"", ""},
        {"\"" + hex('2', 32) + "\"", "\"\"", ""},
        {hex('5', 32), hex('5', 31), "composeHash: expected 32 bytes"},
        {hex('7', 32), hex('7', 33), "deviceId: expected 64 bytes"},
        {"\"UpToDate\"", "7", "tcbStatus is not a string"},
        {"[\"INTEL-SA-1\"]", "[1]", "advisoryIds"},
        {"[\"INTEL-SA-1\"]", "null", "advisoryIds is not an array"},
        {"{", "[", "not a JSON object"},
    };
    for (const auto& c : cases)
    {
        INFO(c.from << " -> " << c.to);
        auto json = to_json(example());
        const auto at = json.find(c.from);
        REQUIRE(at != std::string::npos);
        json.replace(at, c.from.size(), c.to);
        const auto got = boot_info_from_json(json);
        CHECK(bool(got) == c.reason.empty());
        if (!got) { CHECK(got.error().message.find(c.reason) != std::string::npos); }
    }
}
