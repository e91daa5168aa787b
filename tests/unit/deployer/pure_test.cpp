#include "services/deployer/app_compose.hpp"
#include "services/deployer/model.hpp"
#include "services/deployer/validate.hpp"
#include "services/deployer/vmm_wire.hpp"
#include "tests/catch.hpp"
#include <nlohmann/json.hpp>

using namespace dstack;
using namespace dstack::deployer;

namespace
{
Result<Done> any_compose(std::string_view) { return Done{}; }
Result<Done> no_compose(std::string_view) { return Error{Errc::invalid_argument, "line 1: no services", {}, {}}; }

schema::DeployCreate good()
{
    schema::DeployCreate request;
    request.name = "hello";
    request.compose = "services: {}";
    return request;
}
} // namespace

TEST_CASE("the app document is upstream's, byte for byte the same every time")
{
    const AppDocument a = build_app_document("hello", "services:\n  web: {}\n", true);
    CHECK(a.text.starts_with("{\n  \"manifest_version\": 2,\n  \"name\": \"hello\",\n  \"runner\": \"docker-compose\",\n"
                             "  \"docker_compose_file\": \"services:\\n  web: {}\\n\",\n  \"kms_enabled\": true,\n"));
    CHECK(a.text.ends_with("\n}"));
    CHECK(a.compose_hash.size() == 64);
    CHECK(a.app_id == a.compose_hash.substr(0, 40));
    CHECK(build_app_document("hello", "services:\n  web: {}\n", true).compose_hash == a.compose_hash);
    // Pinned: an app that is deployed again next year must have the same id.
    CHECK(a.compose_hash == "53ba6837fdb5ac200a74987c1396f814e70e544513be73e693bb1eb581eb47cc");
    CHECK(build_app_document("other", "services:\n  web: {}\n", true).app_id != a.app_id);
    const auto json = nlohmann::json::parse(build_app_document("x", "\xc3\xa9\x7f", false).text);
    CHECK(json["docker_compose_file"] == "\xc3\xa9\x7f");
    CHECK(json["kms_enabled"] == false);
    CHECK(json["gateway_enabled"] == false);
    CHECK(json["secure_time"] == false);
}

TEST_CASE("requests that are refused, and why")
{
    struct Row
    {
        const char* what;
        void (*spoil)(schema::DeployCreate&);
        const char* says;
    };
    const Row rows[] = {
        {"no name", [](auto& r) { r.name = ""; }, "needs a name"},
        {"slash", [](auto& r) { r.name = "a/b"; }, "refuses the character '/'"},
        {"control byte", [](auto& r) { r.name = "a\nb"; }, "'a?b'"},
        {"not ASCII", [](auto& r) { r.name = "h\xc3\xa9"; }, "refuses the character"},
        {"option", [](auto& r) { r.name = "-rf"; }, "begins with '-'"},
        {"long", [](auto& r) { r.name = std::string(65, 'a'); }, "at most 64"},
        {"huge compose", [](auto& r) { r.compose = std::string(256 * 1024 + 1, '#'); }, "256 KiB"},
        {"binary compose", [](auto& r) { r.compose = "a: \xff"; }, "not UTF-8"},
        {"image", [](auto& r) { r.image = "../etc"; }, "not an image name"},
        {"vcpu", [](auto& r) { r.vcpu = 0; }, "vcpu 0"},
        {"memory", [](auto& r) { r.memory_mb = 1; }, "memory (MiB) 1"},
        {"disk", [](auto& r) { r.disk_gb = 1'000'000; }, "disk (GiB)"},
        {"protocol", [](auto& r) { r.ports = {{"sctp", "127.0.0.1", 0, 80}}; }, "'sctp'"},
        {"guest port", [](auto& r) { r.ports = {{"tcp", "127.0.0.1", 0, 0}}; }, "guest port 0"},
        {"host port", [](auto& r) { r.ports = {{"tcp", "127.0.0.1", 65536, 80}}; }, "host port 65536"},
        {"address", [](auto& r) { r.ports = {{"tcp", "localhost", 0, 80}}; }, "'localhost'"},
        {"twice",
         [](auto& r) {
             r.ports = {{"tcp", "127.0.0.1", 8080, 80}, {"tcp", "0.0.0.0", 8080, 81}};
         },
         "asked for twice"},
        {"too many", [](auto& r) { r.ports.assign(33, {"tcp", "127.0.0.1", 0, 80}); }, "33 ports"},
        {"timeout", [](auto& r) { r.ready_timeout_ms = 0; }, "ready timeout"},
    };
    for (const Row& row : rows)
    {
        INFO(row.what);
        auto request = good();
        row.spoil(request);
        auto verdict = validate(request, any_compose);
        REQUIRE(!verdict);
        CHECK(verdict.error().code == Errc::invalid_argument);
        INFO(verdict.error().message);
        CHECK(verdict.error().message.find(row.says) != std::string::npos);
    }
    CHECK(validate(good(), any_compose));
    auto fine = good();
    fine.name = "My app-1_x.y @~!$^()";
    fine.ports = {{"tcp", "127.0.0.1", 0, 80}, {"tcp", "127.0.0.1", 0, 81}, {"udp", "::1", 53, 53}, {"tcp", "127.0.0.1", 53, 1}};
    CHECK(validate(fine, any_compose));
    auto compose = validate(good(), no_compose);
    REQUIRE(!compose);
    CHECK(compose.error().message == "compose file: line 1: no services");
}

TEST_CASE("UTF-8 is strict")
{
    for (const char* text : {"", "a", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "a\xf4\x8f\xbf\xbf"}) { CHECK(is_utf8(text)); }
    for (const char* text : {"\x80", "\xc3", "\xc0\xaf", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xe2\x82", "\xff"})
    {
        CHECK_FALSE(is_utf8(text));
    }
}

TEST_CASE("CreateVm as the VMM wants it")
{
    AppFacts app;
    app.name = "hello";
    app.app_id = std::string(40, 'a');
    app.app_compose = "{\"x\": \"\\n\"}";
    app.image = "dstack-dev-0.5.6";
    app.vcpu = 2;
    app.memory_mb = 1024;
    app.disk_gb = 3;
    app.cid = 1007;
    app.ports = {{"tcp", "127.0.0.1", 18000, 80}};
    const auto body = nlohmann::json::parse(create_vm_body(app, {true, "dstack-tdx", {"https://10.0.2.2:8443"}}));
    CHECK(body["compose_file"] == app.app_compose);
    CHECK(body["memory"] == 1024);
    CHECK(body["disk_size"] == 3);
    CHECK(body["ports"][0]["host_port"] == 18000);
    CHECK(body["ports"][0]["host_address"] == "127.0.0.1");
    CHECK(body["simulated_tee"] == "dstack-tdx");
    CHECK(body["kms_urls"][0] == "https://10.0.2.2:8443");
    CHECK(body["stopped"] == false);
    CHECK_FALSE(nlohmann::json::parse(create_vm_body(app, {})).contains("simulated_tee"));
}

TEST_CASE("the VMM's answers are read strictly")
{
    auto id = parse_id(R"({"id":"0b1c-2"})");
    REQUIRE(id);
    CHECK(*id == "0b1c-2");
    for (const char* bad : {"", "null", "{}", R"({"id":""})", R"({"id":"../x"})", R"({"id":7})", "[1"}) { CHECK(!parse_id(bad)); }

    auto vms = parse_vms(R"({"vms":[{"id":"a","name":"n","app_id":"x","status":"running","boot_progress":"done","boot_error":"","instance_id":null,"configuration":null}],"total":1})");
    REQUIRE(vms);
    REQUIRE(vms->size() == 1);
    CHECK(vms->front().boot_progress == "done");
    CHECK(vms->front().instance_id.empty());
    CHECK(!parse_vms(R"({"vms":null})"));

    auto info = parse_info(R"({"found":false,"info":null})");
    REQUIRE(info);
    CHECK(!*info);
    auto found = parse_info(R"({"found":true,"info":{"id":"a","status":"exited"}})");
    REQUIRE(found);
    REQUIRE(*found);
    CHECK((*found)->status == "exited");
    CHECK(!parse_info(R"({"found":true})"));
    CHECK(!parse_info("<html>"));
}

TEST_CASE("the VMM's own words survive, with a class")
{
    const auto error = vmm_error("CreateVm", 400, "{\n  \"error\": \"host port mapping conflicts with VM x: tcp 127.0.0.1:80\"\n}");
    CHECK(error.message == "vmm CreateVm: host port mapping conflicts with VM x: tcp 127.0.0.1:80");
    CHECK(error.code == Errc::already_exists);
    CHECK(vmm_error("X", 400, R"({"error":"Failed to load VM: Failed to load image: no such file"})").code == Errc::not_found);
    CHECK(vmm_error("X", 400, R"({"error":"CID pool exhausted"})").code == Errc::resource_exhausted);
    CHECK(vmm_error("X", 400, R"({"error":"Invalid name: a"})").code == Errc::invalid_argument);
    CHECK(vmm_error("X", 401, "").code == Errc::permission_denied);
    CHECK(vmm_error("X", 502, "bad gateway").message == "vmm X: HTTP status 502: bad gateway");
}

TEST_CASE("the newest image is the one with the highest version")
{
    CHECK(newest_image({}) == nullptr);
    const std::vector<ImageInfo> images{{"a", "0.5.9"}, {"b", "0.5.10"}, {"c", "bad"}, {"d", ""}};
    CHECK(newest_image(images)->name == "b");
    const std::vector<ImageInfo> same{{"dstack-dev-1", "0.5.6"}, {"dstack-dev-2", "0.5.6"}};
    CHECK(newest_image(same)->name == "dstack-dev-2");
}

TEST_CASE("times and ports as text")
{
    CHECK(rfc3339(0) == "1970-01-01T00:00:00.000Z");
    CHECK(rfc3339(1'700'000'000'007) == "2023-11-14T22:13:20.007Z");
    CHECK(to_text({"tcp", "127.0.0.1", 0, 80}) == "tcp 127.0.0.1:auto -> 80");
    CHECK(to_text({"udp", "::1", 53, 5353}) == "udp [::1]:53 -> 5353");
}
