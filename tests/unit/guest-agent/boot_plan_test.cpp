#include "services/guest-agent/boot_plan.hpp"
#include "services/guest-agent/disks.hpp"
#include "shared/attestation/simulated.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include "tests/catch.hpp"
#include <array>
#include <nlohmann/json.hpp>

using namespace dstack;
using namespace dstack::guest;
using nlohmann::json;

namespace
{

constexpr crypto::Bytes20 fresh_seed{7};
const std::string seed_hex(40, '1');

json good_compose()
{
    return {{"manifest_version", 2},
            {"name", "hello"},
            {"runner", "docker-compose"},
            {"docker_compose_file", "services: {}"},
            {"secure_time", false}};
}

Share share_of(const json& compose, const json& sys = json::object())
{
    return {compose.dump(), sys.dump(), {}, {}, {}};
}

std::string refusal(const Share& share)
{
    const auto plan = plan_boot(share, fresh_seed);
    return plan ? "accepted" : plan.error().message;
}

/// What the VMM writes for this app.
std::string simulator(const std::string& app_compose, const std::string& app_id, const std::string& instance_id)
{
    attestation::Claims claims;
    claims.vm_id = "vm-1";
    claims.app_id = app_id;
    claims.compose_hash = crypto::to_hex(crypto::sha256(app_compose));
    claims.instance_id = instance_id;
    claims.os_image_hash = std::string(64, 'c');
    claims.vcpu = 1;
    claims.memory_mib = 256;
    claims.issued_at = 1'700'000'000;
    auto text = attestation::make_simulator_config(crypto::Bytes32{1}, claims);
    REQUIRE(text);
    return *text;
}

} // namespace

TEST_CASE("an app without a key provider needs nothing from the host")
{
    const Share share = share_of(good_compose());
    const auto plan = plan_boot(share, fresh_seed);
    REQUIRE(plan);
    CHECK(plan->compose_hash == crypto::to_hex(crypto::sha256(share.app_compose)));
    CHECK(plan->app_id == plan->compose_hash.substr(0, 40));
    CHECK(plan->instance_seed == crypto::to_hex(fresh_seed));
    const auto app = crypto::from_hex(plan->app_id);
    CHECK(plan->instance_id == attestation::make_instance_id(fresh_seed, *app));
    CHECK(plan->key_provider == KeyProvider::none);
    CHECK(plan->host_api_url.empty());
    CHECK_FALSE(plan->simulated);
    CHECK(plan->warnings.empty());
}

TEST_CASE("the host's statement decides about app and instance")
{
    Share share = share_of(good_compose(), {{"host_api_url", "http://10.0.2.2:7000/api/"}});
    const std::string app_id = crypto::to_hex(crypto::sha256(share.app_compose)).substr(0, 40);
    const auto app = crypto::from_hex(app_id);
    const auto seed = crypto::from_hex(seed_hex);
    const std::string instance_id = attestation::make_instance_id(*seed, *app);
    share.instance_info = json{{"app_id", app_id}, {"instance_id_seed", seed_hex}}.dump();
    share.simulator = simulator(share.app_compose, app_id, instance_id);

    SECTION("all agree")
    {
        const auto plan = plan_boot(share, fresh_seed);
        REQUIRE(plan);
        CHECK(plan->simulated);
        CHECK(plan->instance_id == instance_id);
        CHECK(plan->os_image_hash == std::string(64, 'c'));
        CHECK(plan->host_api_url == "http://10.0.2.2:7000/api");
        CHECK(console_report(*plan).find("\"compose_hash\": \"" + plan->compose_hash + "\"") != std::string::npos);
        CHECK(console_report(*plan).find("simulated") != std::string::npos);
    }
    SECTION("the compose file was changed afterwards")
    {
        share.app_compose += " ";
        CHECK(refusal(share).find("but this VM was started for") != std::string::npos);
        CHECK(host_api_of(share) == "http://10.0.2.2:7000/api");
    }
    SECTION("another app id")
    {
        share.instance_info = json{{"app_id", std::string(40, 'f')}}.dump();
        CHECK(refusal(share).find(".instance_info has the app id ffff") != std::string::npos);
    }
    SECTION("another seed")
    {
        share.instance_info = json{{"app_id", app_id}, {"instance_id_seed", std::string(40, '2')}}.dump();
        CHECK(refusal(share).find("the seed in .instance_info gives the instance id") != std::string::npos);
    }
    SECTION("the host keeps the seed")
    {
        share.instance_info = json{{"app_id", app_id}}.dump();
        const auto plan = plan_boot(share, fresh_seed);
        REQUIRE(plan);
        CHECK(plan->instance_id == instance_id);
        CHECK(plan->instance_seed.empty());
    }
    SECTION("a statement that does not parse")
    {
        share.simulator = "{}";
        CHECK(refusal(share).starts_with(".tee-simulator.json: "));
    }
}

TEST_CASE("what would run another app than the measured one is refused")
{
    struct Row
    {
        const char* key;
        json value;
        std::string_view message;
    };
    const Row rows[] = {
        {"manifest_version", 4, "app-compose.json: manifest_version is missing or not one of 1, 2, \"3\""},
        {"manifest_version", 3, "app-compose.json: manifest_version is missing or not one of 1, 2, \"3\""},
        {"manifest_version", "03", "app-compose.json: manifest_version is missing or not one of 1, 2, \"3\""},
        {"runner", "bash", "app-compose.json: the runner 'bash' is not supported by the development guest"},
        {"runner", 1, "app-compose.json: the runner '' is not supported by the development guest"},
        {"docker_compose_file", "", "app-compose.json: docker_compose_file is missing or empty"},
        {"docker_compose_file", json::array(), "app-compose.json: docker_compose_file has the wrong type"},
        {"pre_launch_script", "echo", "app-compose.json: pre_launch_script is not supported by the development guest"},
        {"init_script", json::array({"a"}), "app-compose.json: init_script is not supported by the development guest"},
        {"verity_volumes", json::array({json::object()}),
         "app-compose.json: verity_volumes is not supported by the development guest"},
        {"key_provider", "tpm", "app-compose.json: the key provider 'tpm' does not exist in the development guest"},
        {"local_key_provider_enabled", true,
         "app-compose.json: the key provider 'local' does not exist in the development guest"},
        {"key_provider", "kms", "no KMS URLs are set, and the app's key provider is kms"},
        {"kms_enabled", true, "no KMS URLs are set, and the app's key provider is kms"},
        {"pre_launch_script", "", "accepted"},
        {"init_script", nullptr, "accepted"},
        {"manifest_version", "3", "accepted"},
        {"unknown_key", 1, "accepted"},
    };
    for (const Row& row : rows)
    {
        json compose = good_compose();
        compose[row.key] = row.value;
        INFO(row.key << " " << row.value.dump());
        CHECK(refusal(share_of(compose)) == row.message);
    }
    CHECK(refusal({"not json", "{}", {}, {}, {}}) == "app-compose.json is not a JSON object");
    CHECK(refusal({good_compose().dump(), "[]", {}, {}, {}}) == ".sys-config.json is not a JSON object");
    CHECK(refusal(share_of(good_compose(), {{"kms_urls", "https://x"}})) ==
          ".sys-config.json: kms_urls has the wrong type");
    Share share = share_of(good_compose());
    share.instance_info = "{\"instance_id_seed\":\"zz\"}";
    CHECK(refusal(share) == ".instance_info: instance_id_seed is not hex");
    share = share_of(good_compose());
    share.encrypted_env = "secret";
    CHECK(refusal(share).starts_with("there is an encrypted environment"));
    json with_kms = good_compose();
    with_kms["kms_enabled"] = true;
    CHECK(refusal(share_of(with_kms, {{"kms_urls", {"https://10.0.2.2:8443"}}})).find("gave no .tee-simulator.json") !=
          std::string::npos);
}

TEST_CASE("what a development guest leaves out is said")
{
    json compose = good_compose();
    compose.erase("secure_time"); // true is the default
    compose["gateway_enabled"] = true;
    const auto plan = plan_boot(share_of(compose, {{"host_api_url", "vsock://2:10000/api"}}), fresh_seed);
    REQUIRE(plan);
    CHECK(plan->warnings.size() == 3);
    CHECK(plan->host_api_url.empty());
}

TEST_CASE("no_instance_id gives an empty instance id")
{
    json compose = good_compose();
    compose["no_instance_id"] = true;
    const auto plan = plan_boot(share_of(compose), fresh_seed);
    REQUIRE(plan);
    CHECK(plan->instance_id.empty());
    CHECK(instance_info_json(*plan) == R"({"instance_id_seed":"","instance_id":"","app_id":")" + plan->app_id + "\"}");
}

TEST_CASE("only allowed names come out of the encrypted environment")
{
    const auto list = read_env(
        R"({"env":[{"key":"A","value":"1"},{"key":"B","value":"2"},{"key":"1X","value":"3"},{"key":"C D","value":"4"}]})",
        {"A", "1X", "C D", "Z"});
    REQUIRE(list);
    CHECK(*list == std::vector<std::pair<std::string, std::string>>{{"A", "1"}});
    for (const std::string_view bad :
         {"", "[]", "{\"env\":{}}", "{\"env\":[1]}", "{\"env\":[{\"key\":1,\"value\":\"x\"}]}"})
    {
        INFO(bad);
        CHECK_FALSE(read_env(bad, {}));
    }
}

TEST_CASE("disks are told by their first bytes")
{
    std::array<char, disk_head_bytes> head{};
    CHECK(disk_kind(head) == DiskKind::other);
    CHECK(disk_kind({}) == DiskKind::other);
    std::string_view{"hsqs"}.copy(head.data(), 4);
    CHECK(disk_kind(head) == DiskKind::squashfs);
    head = {};
    std::string_view{"DSTACKSHR  FAT32   "}.copy(head.data() + 71, 19);
    CHECK(disk_kind(head) == DiskKind::other);
    head[510] = '\x55';
    head[511] = '\xaa';
    CHECK(disk_kind(head) == DiskKind::host_share);
    head[71] = 'X';
    CHECK(disk_kind(head) == DiskKind::other);
}
