#include "services/dstackup/configs.hpp"
#include "services/dstackup/layout.hpp"
#include "services/dstackup/notify.hpp"
#include "services/dstackup/restart.hpp"
#include "services/dstackup/settings.hpp"
#include "services/dstackup/status.hpp"
#include "tests/catch.hpp"
#include <optional>

using namespace dstack;
using namespace dstack::up;
using namespace std::string_literals;
using std::chrono::milliseconds;
using std::chrono::seconds;

TEST_CASE("restarts back off, then give up, then begin anew")
{
    RestartBudget budget;
    const std::chrono::steady_clock::time_point start{};
    const long expected[] = {100, 200, 400, 800, 1600};
    auto now = start;
    for (const long delay : expected)
    {
        const auto decision = budget.ended(now, 70);
        CHECK_FALSE(decision.give_up);
        CHECK(decision.delay == milliseconds{delay});
        now += seconds{1};
    }
    const auto last = budget.ended(now, 70);
    CHECK(last.give_up);
    CHECK(last.reason == "crash_loop");
    budget.reset();
    CHECK(budget.ended(now, 70).delay == milliseconds{100});
}

TEST_CASE("ends that are long past do not count")
{
    RestartBudget budget;
    std::chrono::steady_clock::time_point now{};
    for (int i = 0; i < 100; ++i)
    {
        const auto decision = budget.ended(now, std::nullopt);
        CHECK_FALSE(decision.give_up);
        CHECK(decision.delay == milliseconds{100});
        now += seconds{61};
    }
}

TEST_CASE("a refused configuration is not tried again")
{
    CHECK(RestartBudget{}.ended({}, 78).reason == "config");
    CHECK(RestartBudget{}.ended({}, 64).reason == "usage");
    CHECK_FALSE(RestartBudget{}.ended({}, 0).give_up);
    CHECK_FALSE(RestartBudget{}.ended({}, std::nullopt).give_up);
}

TEST_CASE("notices of the sd_notify protocol")
{
    struct Row
    {
        std::string text;
        bool ready;
        bool stopping;
        std::string status;
    };
    for (const auto& row :
         {Row{"READY=1", true, false, ""}, Row{"READY=1\nSTATUS=3 guests\n", true, false, "3 guests"},
          Row{"STOPPING=1\n", false, true, ""}, Row{"READY=0", false, false, ""},
          Row{"XREADY=1\nWATCHDOG=1", false, false, ""}, Row{"", false, false, ""}, Row{"\n\n\n", false, false, ""},
          Row{"STATUS=" + std::string(5000, 'x'), false, false, std::string(200, 'x')}})
    {
        CAPTURE(row.text);
        const auto notice = parse_notice(row.text);
        CHECK(notice.ready == row.ready);
        CHECK(notice.stopping == row.stopping);
        CHECK(notice.status == row.status);
    }
}

TEST_CASE("status survives its file")
{
    MeshStatus status;
    status.supervisor = {42, 4711, "boot"};
    status.services.push_back({"auth", Phase::failed, {}, false, 5, 6, "exit code 78", "config", ""});
    status.services.push_back({"bus", Phase::ready, {43, 4712, "boot"}, true, 1, 0, "", "", "3 peers"});
    const auto back = decode_status(encode(status));
    REQUIRE(back);
    CHECK(back->supervisor == status.supervisor);
    CHECK(back->services == status.services);
    CHECK_FALSE(back->all_ready());
    REQUIRE(back->failed() != nullptr);
    CHECK(back->failed()->name == "auth");
    REQUIRE(back->find("bus") != nullptr);
    CHECK(back->find("nobody") == nullptr);
}

TEST_CASE("what is no status document is refused, what is odd in one is left out")
{
    for (const auto* text : {"", "[]", "{}", "{\"services\":3}", "not json", "{\"services\":[}"})
    {
        CHECK_FALSE(decode_status(text));
    }
    const auto odd =
        decode_status(R"({"services":[1,{"name":"a","phase":"dancing"},{"name":"b","phase":"ready","restarts":"x"}]})");
    REQUIRE(odd);
    REQUIRE(odd->services.size() == 1);
    CHECK(odd->services[0].name == "b");
    CHECK_FALSE(MeshStatus{}.all_ready());
}

TEST_CASE("settings survive their file")
{
    Settings settings{"/tmp/a \"quoted\" \\ prefix", "/build/services/dstackup/dstackup", 1, 2, 65535};
    const auto back = parse_settings(to_toml(settings));
    REQUIRE(back);
    CHECK(back->prefix == settings.prefix);
    CHECK(back->program == settings.program);
    CHECK(back->auth_port == 1);
    CHECK(back->vmm_port == 2);
    CHECK(back->kms_port == 65535);
    for (const auto* text :
         {"", "prefix = \"/a\"", "prefix = \"a\"\nprogram = \"/b\"", "prefix = \"/a\"\nprogram = \"/b\"\nx = 1",
          "prefix = \"/a\"\nprogram = \"/b\"\n[ports]\nauth = 0"})
    {
        CAPTURE(text);
        CHECK_FALSE(parse_settings(text));
    }
}

TEST_CASE("an edited file is known from its first line")
{
    const auto file = managed("[auth]\nport = 1\n");
    CHECK(is_unedited(file));
    CHECK_FALSE(is_unedited(file + "# mine\n"));
    CHECK_FALSE(is_unedited("[auth]\nport = 1\n"));
    CHECK_FALSE(is_unedited(""));
    CHECK_FALSE(is_unedited(file.substr(0, 40)));
}

TEST_CASE("our services are known by program and configuration, in their own prefix only")
{
    const Layout at{"/p"};
    CHECK(is_command_of("/b/services/auth/dstack-auth\0--config\0/p/etc/dstack/auth.toml\0"s, at, "auth"));
    CHECK(is_command_of("dstack-auth\0--debug\0--config\0/p/etc/dstack/auth.toml\0"s, at, "auth"));
    CHECK_FALSE(is_command_of("dstack-auth\0--config\0/other/etc/dstack/auth.toml\0"s, at, "auth"));
    CHECK_FALSE(is_command_of("dstack-authx\0--config\0/p/etc/dstack/auth.toml\0"s, at, "auth"));
    CHECK_FALSE(is_command_of("vim\0/p/etc/dstack/auth.toml\0"s, at, "auth"));
    CHECK_FALSE(is_command_of("tail\0--config\0/p/etc/dstack/auth.toml\0"s, at, "auth"));
    CHECK_FALSE(is_command_of("dstack-auth\0--config\0"s, at, "auth"));
    CHECK_FALSE(is_command_of("", at, "auth"));
    CHECK(mentions_below("qemu\0-drive\0file=/p/var/lib/x/hda.img\0"s, "/p/var/lib"));
    CHECK_FALSE(mentions_below("qemu\0-drive\0file=/p/var/library/hda.img\0"s, "/p/var/lib"));
}

TEST_CASE("programs are looked for in the build tree first")
{
    const auto candidates = program_candidates("/src/build/services/dstackup/dstackup", Layout{"/p"}, roster[0]);
    REQUIRE(candidates.size() == 3);
    CHECK(candidates[0] == "/src/build/bus/broker/dstack-bus");
    CHECK(candidates[1] == "/src/build/services/libexec/dstack/dstack-bus");
    CHECK(candidates[2] == "/p/libexec/dstack/dstack-bus");
    CHECK(program_candidates("/usr/bin/dstackup", Layout{"/p"}, roster[1])[1] == "/usr/libexec/dstack/dstack-auth");
}

TEST_CASE("durations for people")
{
    CHECK(short_duration(0) == "0 s");
    CHECK(short_duration(119'999) == "119 s");
    CHECK(short_duration(120'000) == "2 min");
    CHECK(short_duration(3 * 3'600'000ULL) == "3 h");
    CHECK(short_duration(72 * 3'600'000ULL) == "3 d");
}
