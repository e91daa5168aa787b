#include "services/guest-agent/image_store.hpp"
#include "services/guest-agent/line_prefix.hpp"
#include "services/guest-agent/listening.hpp"
#include "services/guest-agent/oci_spec.hpp"
#include "services/guest-agent/restart.hpp"
#include "tests/catch.hpp"
#include <nlohmann/json.hpp>

using namespace dstack;
using namespace dstack::guest;
using nlohmann::json;
using Words = std::vector<std::string>;

namespace
{

const std::string digest = "sha256:" + std::string(64, 'a');

std::string index_with(const json& image) { return json{{"format", 1}, {"images", json::array({image})}}.dump(); }

json image_json(const std::string& folder)
{
    return {{"format", 1},
            {"folder", folder},
            {"reference", "docker.io/library/busybox:latest"},
            {"manifest_digest", digest},
            {"config",
             {{"entrypoint", json::array()}, {"cmd", {"sh"}}, {"env", {"PATH=/bin"}}, {"workdir", "/"}, {"user", ""}}}};
}

constexpr std::string_view passwd_file =
    "root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:1000:1001::/home/app:/bin/sh\nhuge:x:99999999999:1::/:/\n";
constexpr std::string_view groups = "root:x:0:\nstaff:x:50:bob,app\nadm:x:4:app\nwww:x:33:\n";

} // namespace

TEST_CASE("the index of the image store")
{
    const auto images = parse_store_index(index_with(image_json("busybox-1")));
    REQUIRE(images);
    REQUIRE(images->size() == 1);
    CHECK(images->front().config.cmd == Words{"sh"});
    CHECK(find_image(*images, "docker.io/library/busybox:latest"));
    CHECK(find_image(*images, "docker.io/library/busybox@" + digest));
    CHECK_FALSE(find_image(*images, "docker.io/library/other@" + digest));
    const auto missing = find_image(*images, "docker.io/library/nginx:1.25");
    REQUIRE_FALSE(missing);
    CHECK(missing.error().message == "the image docker.io/library/nginx:1.25 is not in the image store, which has: "
                                     "docker.io/library/busybox:latest");
    CHECK(find_image({}, "docker.io/library/nginx:1").error().message ==
          "the image docker.io/library/nginx:1 is not in the image store, which is empty");

    for (const char* folder : {"..", "../x", "a/b", "", ".hidden"})
    {
        INFO(folder);
        CHECK_FALSE(parse_store_index(index_with(image_json(folder))));
    }
    json incomplete = image_json("x");
    incomplete["config"].erase("cmd");
    CHECK_FALSE(parse_store_index(index_with(incomplete)));
    for (const std::string_view bad :
         {"", "{}", "[]", "{\"format\":2,\"images\":[]}", "{\"format\":1}", "{\"format\":1,\"images\":[1]}"})
    {
        INFO(bad);
        CHECK_FALSE(parse_store_index(bad));
    }
}

TEST_CASE("users are looked up in the image")
{
    struct Row
    {
        std::string_view spec;
        std::uint32_t uid, gid;
        std::string_view home;
        std::vector<std::uint32_t> groups;
    };
    const Row rows[] = {
        {"", 0, 0, "/root", {}},
        {"app", 1000, 1001, "/home/app", {50, 4}},
        {"1000", 1000, 1001, "/home/app", {50, 4}},
        {"app:www", 1000, 33, "/home/app", {}},
        {"7", 7, 0, "/", {}},
        {"7:8", 7, 8, "/", {}},
    };
    for (const Row& row : rows)
    {
        INFO(row.spec);
        const auto user = resolve_user(row.spec, passwd_file, groups);
        REQUIRE(user);
        CHECK(user->uid == row.uid);
        CHECK(user->gid == row.gid);
        CHECK(user->home == row.home);
        CHECK(user->groups == row.groups);
    }
    CHECK(resolve_user("nobody", passwd_file, groups).error().message == "the image has no user 'nobody'");
    CHECK(resolve_user("app:nogroup", passwd_file, groups).error().message == "the image has no group 'nogroup'");
    CHECK_FALSE(resolve_user("huge", passwd_file, groups));
    CHECK(resolve_user("", "", "")->uid == 0);
}

TEST_CASE("entrypoint and command combine as docker does")
{
    const ImageConfig image{{"/entry"}, {"default"}, {}, "/", ""};
    compose::Service service;
    CHECK(command_line(service, image) == Words{"/entry", "default"});
    service.command = Words{"mine"};
    CHECK(command_line(service, image) == Words{"/entry", "mine"});
    service.entrypoint = Words{"/other"};
    CHECK(command_line(service, image) == Words{"/other", "mine"});
    service.command.reset();
    CHECK(command_line(service, image) == Words{"/other"});
    service.command = Words{};
    service.entrypoint = Words{};
    CHECK(command_line(service, image).empty());
}

TEST_CASE("the container is cut off from the guest but for its network")
{
    compose::Service service;
    service.name = "web";
    service.environment = {{"A", "1"}, {"PATH", "/mine"}};
    service.read_only = true;
    service.mounts = {{compose::Mount::Kind::tmpfs, "", "/cache", "size=1m,noexec", false},
                      {compose::Mount::Kind::volume, "data", "/data", "", true}};
    const ImageConfig image{{}, {"run"}, {"PATH=/image", "B=2"}, "/srv", ""};
    const ContainerPaths paths{"/r", "/h", "/d", "/n", "/v"};
    const auto text = oci_spec(service, image, {1000, 1000, "/home/app", {4}}, paths);
    REQUIRE(text);
    const json spec = json::parse(*text);
    const json& process = spec["process"];
    CHECK(process["args"] == json{"run"});
    CHECK(process["env"] == json{"PATH=/mine", "HOME=/home/app", "B=2", "A=1"});
    CHECK(process["cwd"] == "/srv");
    CHECK(process["noNewPrivileges"] == true);
    CHECK(process["capabilities"]["effective"].empty());
    CHECK(process["user"]["additionalGids"] == json{4});
    CHECK(spec["root"] == json{{"path", "/r"}, {"readonly", true}});
    std::set<std::string> namespaces;
    for (const json& item : spec["linux"]["namespaces"]) { namespaces.insert(item["type"]); }
    CHECK(namespaces == std::set<std::string>{"cgroup", "ipc", "mount", "pid", "uts"});
    const json& mounts = spec["mounts"];
    CHECK(mounts[mounts.size() - 2]["options"] == json{"nosuid", "nodev", "rw", "size=1m", "noexec"});
    CHECK(mounts[mounts.size() - 1] == json{{"destination", "/data"},
                                            {"type", "bind"},
                                            {"source", "/v/data"},
                                            {"options", {"nosuid", "nodev", "ro", "rbind"}}});

    const auto as_root = oci_spec(service, image, {}, paths);
    const json held = json::parse(*as_root)["process"]["capabilities"]["effective"];
    for (const char* dangerous :
         {"CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_MODULE", "CAP_MKNOD", "CAP_SYS_PTRACE", "CAP_NET_RAW"})
    {
        INFO(dangerous);
        CHECK(std::find(held.begin(), held.end(), dangerous) == held.end());
    }
    const auto empty = oci_spec(service, {}, {}, paths);
    REQUIRE_FALSE(empty);
    CHECK(empty.error().message == "service web: neither the image nor the compose file says what to run");
}

TEST_CASE("restart policies")
{
    using compose::Restart;
    using Policy = Restart::Policy;
    using std::chrono::milliseconds;
    struct Row
    {
        Restart restart;
        bool failed;
        unsigned attempts;
        std::optional<milliseconds> delay;
    };
    const Row rows[] = {
        {{Policy::no, 0}, true, 1, std::nullopt},
        {{Policy::always, 0}, false, 1, milliseconds{100}},
        {{Policy::unless_stopped, 0}, true, 2, milliseconds{200}},
        {{Policy::always, 0}, true, 5, milliseconds{1600}},
        {{Policy::always, 0}, true, 50, milliseconds{30'000}},
        {{Policy::on_failure, 0}, false, 1, std::nullopt},
        {{Policy::on_failure, 0}, true, 1, milliseconds{100}},
        {{Policy::on_failure, 2}, true, 2, milliseconds{200}},
        {{Policy::on_failure, 2}, true, 3, std::nullopt},
    };
    for (const Row& row : rows)
    {
        INFO(static_cast<int>(row.restart.policy) << " " << row.failed << " " << row.attempts);
        CHECK(restart_delay(row.restart, row.failed, row.attempts) == row.delay);
    }
}

TEST_CASE("output gets its service's name, line by line")
{
    LinePrefix prefix{"web"};
    CHECK(prefix.feed("one\ntw").empty() == false);
    LinePrefix other{"db"};
    CHECK(other.feed("one\r\ntwo\nth") == "[db] one\n[db] two\n");
    CHECK(other.feed("ree\n") == "[db] three\n");
    CHECK(other.feed("end") == "");
    CHECK(other.finish() == "[db] end\n");
    CHECK(other.finish() == "");
    const std::string endless(20'000, 'x');
    CHECK(other.feed(endless).size() == 2 * (5 + 8192 + 1));
}

TEST_CASE("listeners are read from the kernel's table")
{
    const auto ports = listening_ports(
        "  sl  local_address rem_address   st tx_queue rx_queue\n"
        "   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n"
        "   1: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 2 1\n"
        "   2: 00000000000000000000000000000000:1538 00000000000000000000000000000000:0000 0A 0\n"
        "garbage\n: : : 0A\n");
    CHECK(ports == std::set<std::uint16_t>{80, 5432});
    CHECK(listening_ports("").empty());
}

TEST_CASE("who does not catch SIGTERM is known from its status")
{
    CHECK(catches_sigterm("Name:\tsh\nSigIgn:\t0000000000000000\nSigCgt:\t0000000000004002\nCap:\t0\n"));
    CHECK_FALSE(catches_sigterm("Name:\tsh\nSigCgt:\t0000000000000002\n"));
    CHECK(catches_sigterm("nothing of the kind"));
}
