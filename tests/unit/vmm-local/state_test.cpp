#include "services/vmm-local/guest_files.hpp"
#include "services/vmm-local/manifest.hpp"
#include "tests/catch.hpp"
#include <nlohmann/json.hpp>

using namespace dstack;
using namespace dstack::vmm;

namespace
{
Manifest sample()
{
    Manifest m;
    m.id = "11111111-2222-4333-8444-555555555555";
    m.name = "hello";
    m.app_id = "ab";
    m.vcpu = 2;
    m.memory = 512;
    m.image = "dstack-dev-0.6.0";
    m.port_map = {{"127.0.0.1", "tcp", 8080, 80}};
    m.created_at_ms = 1'700'000'000'123;
    m.kms_urls = {"https://kms"};
    m.simulated_tee = "dstack-tdx";
    m.no_tee = true;
    m.cid = 1003;
    return m;
}
} // namespace

TEST_CASE("a manifest comes back as it was")
{
    const auto back = decode_manifest(encode(sample()));
    REQUIRE(back);
    CHECK(*back == sample());
    CHECK(encode(*back) == encode(sample()));
}

TEST_CASE("upstream's required keys are required, and nothing else")
{
    const auto full = nlohmann::json::parse(encode(sample()));
    for (const char* key : {"id", "name", "app_id", "vcpu", "memory", "disk_size", "image", "created_at_ms"})
    {
        auto without = full;
        without.erase(key);
        CAPTURE(key);
        CHECK_FALSE(decode_manifest(without.dump()));
    }
    for (const char* key : {"hugepages", "gpus", "kms_urls", "networks", "networking", "volumes", "swtpm", "cid", "simulated_tee"})
    {
        auto without = full;
        without.erase(key);
        CAPTURE(key);
        CHECK(decode_manifest(without.dump()));
    }
    auto bad = full;
    bad["id"] = "../../etc";
    CHECK_FALSE(decode_manifest(bad.dump()));
    bad = full;
    bad["port_map"][0]["from"] = 65536;
    CHECK_FALSE(decode_manifest(bad.dump()));
    CHECK_FALSE(decode_manifest(""));
    CHECK_FALSE(decode_manifest("[]"));
    CHECK_FALSE(decode_manifest(encode(sample()).substr(0, 50)));
}

TEST_CASE("a state comes back as it was; upstream's form is understood")
{
    State s;
    s.started = true;
    s.boot_progress = "starting containers";
    s.boot_error = "x \xff y"; // a guest may send anything
    s.stop_asked = "shutdown";
    s.started_at_ms = 5;
    s.host_api_port = 40000;
    s.host_api_token = "t";
    s.accel = "tcg";
    s.ready = true;
    s.events = {{"boot.progress", "done", 7}};
    const auto back = decode_state(encode(s));
    REQUIRE(back);
    s.boot_error = "x \xef\xbf\xbd y";
    CHECK(*back == s);
    const auto upstream = decode_state(R"({"started":true})");
    REQUIRE(upstream);
    CHECK(upstream->started);
    CHECK_FALSE(decode_state("{}"));
    CHECK_FALSE(decode_state(R"({"started":1})"));
}

TEST_CASE("ids that may become paths")
{
    for (const char* good : {"a", "vm-123", "A_b", "11111111-2222-4333-8444-555555555555"}) { CHECK(valid_vm_id(good)); }
    for (const std::string& bad : {std::string{}, std::string{"a/b"}, std::string{".."}, std::string{"a b"}, std::string(65, 'a'), std::string("a\0b", 3)})
    {
        CHECK_FALSE(valid_vm_id(bad));
    }
    const std::string uuid = make_uuid();
    CHECK(uuid.size() == 36);
    CHECK(uuid[14] == '4');
    CHECK(std::string{"89ab"}.find(uuid[19]) != std::string::npos);
    CHECK(valid_vm_id(uuid));
    CHECK(make_uuid() != uuid);
}

TEST_CASE("what the guest reads")
{
    Image image;
    image.name = "dstack-dev-0.6.0";
    image.os_image_hash = std::string(64, 'a');
    Manifest m = sample();
    const std::string config = vm_config(m, image, "7.2.22");
    CHECK(config.rfind(R"({"os_image_hash":"aaaa)", 0) == 0);
    const auto parsed = nlohmann::json::parse(config);
    CHECK(parsed["memory_size"] == 512ULL * 1024 * 1024);
    CHECK(parsed["cpu_count"] == 2);
    NodeUrls node;
    node.kms_urls = {"https://node"};
    const auto sys = nlohmann::json::parse(sys_config(m, node, "http://10.0.2.2:4000/x/api", config));
    CHECK(sys["kms_urls"][0] == "https://kms");
    CHECK(sys["host_api_url"] == "http://10.0.2.2:4000/x/api");
    CHECK(sys["vm_config"].is_string());
    CHECK(sys["vm_config"] == config);
    m.kms_urls.clear();
    CHECK(nlohmann::json::parse(sys_config(m, node, "", config))["kms_urls"][0] == "https://node");
    CHECK(first_instance_info(m) == R"({"app_id":"ab"})");
    m.app_id.clear();
    CHECK(first_instance_info(m).empty());
}
