#include "services/vmm-local/answers.hpp"
#include "services/vmm-local/log_tail.hpp"
#include "tests/catch.hpp"
#include <cstdio>
#include <cstdlib>
#include <unistd.h>

using namespace dstack;
using namespace dstack::vmm;

namespace
{
Manifest vm(std::string id, std::string name, std::uint64_t created)
{
    Manifest out;
    out.id = std::move(id);
    out.name = std::move(name);
    out.app_id = "abcd";
    out.image = "img";
    out.created_at_ms = created;
    return out;
}

std::uint64_t tail_of(std::string_view text, std::size_t lines)
{
    char path[] = "/tmp/log-tail-test-XXXXXX";
    const int fd = mkstemp(path);
    unlink(path);
    if (write(fd, text.data(), text.size()) != static_cast<ssize_t>(text.size())) { std::abort(); }
    const auto at = tail_offset(fd, text.size(), lines);
    close(fd);
    return at;
}
} // namespace

TEST_CASE("Status selects, sorts and pages as upstream does")
{
    const Manifest a = vm("a", "web", 3), b = vm("b", "db", 1), c = vm("c", "web2", 2);
    const std::vector<const Manifest*> all{&a, &b, &c};
    const auto pick = [&all](StatusRequest request) { return select(all, request).indexes; };
    using Indexes = std::vector<std::size_t>;
    CHECK(pick({}) == Indexes{1, 2, 0});
    CHECK(pick({{"a", "b", "x"}, false, "", 0, 0}) == Indexes{1, 0});
    CHECK(pick({{}, false, "web", 0, 0}) == Indexes{2, 0});
    CHECK(pick({{}, false, "Web", 0, 0}).empty());
    CHECK(pick({{}, false, "img", 2, 2}) == Indexes{0});
    CHECK(pick({{}, false, "", 4000000000U, 4000000000U}).empty());
    CHECK(select(all, {{}, false, "", 1, 1}).total == 3);
}

TEST_CASE("answers have every field in proto order")
{
    VmView view;
    view.manifest = vm("vm-123", "web", 1);
    view.state.started = true;
    view.state.started_at_ms = 1000;
    CHECK(info_answer(&view, 6000) ==
          R"({"found":true,"info":{"id":"vm-123","name":"web","status":"exited","uptime":"5s","app_url":null,"app_id":"abcd",)"
          R"("instance_id":null,"configuration":null,"exited_at":"never","boot_progress":"","boot_error":"","shutdown_progress":"",)"
          R"("image_version":"","events":[],"interfaces":[{"mode":"user","backend":"slirp","mac":"96:b1:d8:b9:08:e6",)"
          R"("bridge_name":null,"netdev_id":"net0"}]}})");
    CHECK(info_answer(nullptr, 0) == R"({"found":false,"info":null})");
    view.with_configuration = true;
    view.encrypted_env = "\x01\xff";
    view.manifest.port_map = {{"127.0.0.1", "tcp", 8080, 80}};
    const std::string with = info_answer(&view, 0);
    CHECK(with.find(R"("encrypted_env":"01ff")") != std::string::npos);
    CHECK(with.find(R"("ports":[{"protocol":"tcp","host_port":8080,"vm_port":80,"host_address":"127.0.0.1"}])") != std::string::npos);
    CHECK(status_answer({}, 0, true, 0) == R"({"vms":[],"port_mapping_enabled":true,"total":0})");
}

TEST_CASE("the configuration is read with its places and its checks")
{
    const auto config = parse_config("[vmm]\nport = 0\nstate_dir = \"/s\"\n[port_mapping]\nranges = [\"tcp:1-10\"]\n[qemu]\naccel = \"tcg\"\n");
    REQUIRE(config);
    CHECK(config->port == 0);
    CHECK(config->port_ranges.size() == 1);
    CHECK(config->key_file() == "/s/tee-host.pub");
    CHECK(parse_config(""));
    for (const char* bad : {"x = 1", "[vmm]\nstate_dir = \"relative\"", "[vmm]\nport = 70000", "[qemu]\naccel = \"xen\"",
                            "[port_mapping]\nranges = [\"all\"]", "[auto_restart]\ninitial_backoff_ms = 10\nmax_backoff_ms = 5"})
    {
        CAPTURE(bad);
        const auto refused = parse_config(bad);
        REQUIRE_FALSE(refused);
        CHECK(refused.error().message.find("line ") != std::string::npos);
    }
}

TEST_CASE("parameters of /logs")
{
    const auto all = parse_log_query("id=a&follow=true&ansi=&lines=5&ch=stderr");
    REQUIRE(all);
    CHECK(all->follow);
    CHECK(all->ansi);
    CHECK(all->lines == 5);
    CHECK(all->channel == "stderr");
    CHECK(parse_log_query("id=a")->lines == 10'000);
    CHECK_FALSE(parse_log_query("id=a&follow=off")->follow);
    CHECK(parse_log_query("").error().code == Errc::invalid_argument);
    CHECK(parse_log_query("id=a&follow=1").error().code == Errc::invalid_argument);
    CHECK(parse_log_query("id=a&lines=-1").error().code == Errc::invalid_argument);
    CHECK(parse_log_query("id=a&ch=x").error().message == "Unknown channel x");
}

TEST_CASE("the last lines of a file begin where they should")
{
    CHECK(tail_of("a\nb\nc\n", 1) == 4);
    CHECK(tail_of("a\nb\nc", 1) == 4);
    CHECK(tail_of("a\nb\nc\n", 2) == 2);
    CHECK(tail_of("a\nb\nc\n", 3) == 0);
    CHECK(tail_of("a\nb\nc\n", 9) == 0);
    CHECK(tail_of("a\n", 0) == 2);
    CHECK(tail_of("", 5) == 0);
    const std::string large = std::string(200'000, 'x') + "\n" + std::string(200'000, 'y') + "\n";
    CHECK(tail_of(large, 1) == 200'001);
}

TEST_CASE("a log's text survives being cut anywhere")
{
    const std::string text = "h\xc3\xa9llo \x1b[31mred\x1b[0m \xf0\x9f\x98\x80 end\xff\n";
    for (std::size_t cut = 0; cut <= text.size(); ++cut)
    {
        LogText plain{false};
        std::string out = plain.feed(std::string_view{text}.substr(0, cut));
        out += plain.feed(std::string_view{text}.substr(cut));
        out += plain.rest();
        CAPTURE(cut);
        CHECK(out == "h\xc3\xa9llo red \xf0\x9f\x98\x80 end\xef\xbf\xbd\n");
        LogText ansi{true};
        out = ansi.feed(std::string_view{text}.substr(0, cut));
        out += ansi.feed(std::string_view{text}.substr(cut)) + ansi.rest();
        CHECK(out.find("\x1b[31m") != std::string::npos);
    }
}
