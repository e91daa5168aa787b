#include "services/vmm-local/decide.hpp"
#include "tests/catch.hpp"

using namespace dstack;
using namespace dstack::vmm;

TEST_CASE("status words")
{
    CHECK(status_of(true, true, false) == "running");
    CHECK(status_of(true, false, false) == "exited");
    CHECK(status_of(false, true, false) == "stopping");
    CHECK(status_of(false, false, false) == "stopped");
    CHECK(status_of(true, true, true) == "removing");
}

TEST_CASE("durations read as upstream writes them")
{
    const std::pair<std::uint64_t, const char*> table[] = {
        {0, "0s"}, {303, "5m 3s"}, {3723, "1h 2m 3s"}, {93600, "1day 2h"}, {172800, "2days"}, {2630016 + 172800, "1month 2days"},
        {31557600, "1year"},
    };
    for (const auto& [seconds, text] : table) { CHECK(human_duration(seconds) == text); }
    CHECK(elapsed(0, 5000) == "never");
    CHECK(elapsed(1000, 6999) == "5s");
    CHECK(elapsed(9000, 1000) == "0s"); // the clock went back
}

TEST_CASE("a guest's notification changes what it may change")
{
    using Kind = NotifyEffect::Kind;
    const struct
    {
        const char* event;
        const char* payload;
        Kind kind;
    } table[] = {
        {"boot.progress", "requesting app keys", Kind::progress},
        {"boot.progress", "done", Kind::ready},
        {"boot.error", "no keys", Kind::error},
        {"boot.error", "", Kind::error_cleared},
        {"shutdown.progress", "stopping containers", Kind::shutdown},
        {"shutdown.progress", "powering off", Kind::powering_off},
        {"instance.info", R"({"instance_id":"ab"})", Kind::instance_info},
        {"instance.info", "x", Kind::refused},
        {"instance.info", R"({"instance_id":"xyz"})", Kind::refused},
        {"vmm.auto_restart.exhausted", "", Kind::refused},
        {"", "", Kind::refused},
    };
    for (const auto& row : table)
    {
        CAPTURE(row.event, row.payload);
        CHECK(judge_notify(row.event, row.payload).kind == row.kind);
    }
    State state;
    state.started = true;
    const auto say = [&state](const char* event, const char* payload)
    { apply_notify(state, judge_notify(event, payload), event, payload, 7); };
    say("boot.progress", "starting containers");
    CHECK(state.boot_progress == "starting containers");
    CHECK_FALSE(state.ready);
    say("boot.progress", "done");
    CHECK(state.ready);
    say("boot.error", "x");
    CHECK(state.boot_error == "x");
    say("boot.error", "");
    CHECK(state.boot_error.empty());
    say("shutdown.progress", "bye");
    CHECK(state.started);
    say("shutdown.progress", "powering off");
    CHECK_FALSE(state.started);
    state.started = true;
    say("boot.error", "x");
    say("shutdown.progress", "powering off");
    CHECK(state.started); // it failed, nobody stopped it
    for (int i = 0; i < 50; ++i) { say("boot.progress", "again"); }
    CHECK(state.events.size() == max_guest_events);
    CHECK(*instance_id_of(R"({"instance_id":"abcd","app_id":null})") == "abcd");
    CHECK(instance_id_of("{}")->empty());
}

TEST_CASE("how a process' end is told")
{
    const auto facts = [](auto change)
    {
        ExitFacts f;
        change(f);
        return judge_exit(f);
    };
    CHECK(facts([](auto& f) { f.stop_asked = "stop"; }).how == "stop");
    CHECK(facts([](auto& f) { f.stop_asked = "shutdown"; f.panic = "x"; }).expected);
    CHECK(facts([](auto& f) { f.powering_off = true; }).how == "guest");
    CHECK(facts([](auto& f) { f.powering_off = true; f.boot_error = "denied"; }).reason == "boot error: denied");
    auto verdict = facts([](auto& f) { f.panic = "Out of memory"; f.qmp_reason = "guest-reset"; });
    CHECK_FALSE(verdict.expected);
    CHECK(verdict.reason == "kernel panic: Out of memory");
    CHECK(verdict.may_restart);
    verdict = facts([](auto& f) { f.boot_error = "denied"; f.qmp_reason = "guest-shutdown"; });
    CHECK(verdict.reason == "boot error: denied");
    CHECK_FALSE(verdict.may_restart);
    CHECK(facts([](auto& f) { f.qmp_reason = "guest-shutdown"; }).reason == "powered off");
    CHECK(facts([](auto& f) { f.qmp_reason = "guest-shutdown"; f.panic = "the app printed this"; }).reason == "powered off");
    CHECK(facts([](auto& f) { f.panic = "nobody was there"; }).reason == "kernel panic: nobody was there");
    CHECK(facts([](auto& f) { f.qmp_reason = "guest-reset"; }).reason == "the guest reset itself");
    CHECK(facts([](auto& f) { f.stderr_tail = "could not open x"; }).reason == "qemu ended: could not open x");
    CHECK(facts([](auto&) {}).reason == "qemu was killed or crashed");
}

TEST_CASE("QEMU's last words are explained")
{
    CHECK(explain_qemu("qemu-system-x86_64: warning: x\nqemu-system-x86_64: -netdev user,id=net0,hostfwd=tcp:127.0.0.1:80-:80: Could not "
                       "set up host forwarding rule 'tcp:127.0.0.1:80-:80'\n") ==
          "host port tcp 127.0.0.1:80 is already in use or may not be used");
    CHECK(explain_qemu("qemu-system-x86_64: could not load kernel '/x'\n") == "could not load kernel '/x'");
    CHECK(explain_qemu("").empty());
}

TEST_CASE("the end of a serial log is safe to show")
{
    CHECK(last_lines("a\nb\nc\n", 2) == std::vector<std::string>{"b", "c"});
    CHECK(last_lines("", 5).empty());
    CHECK(last_lines("\n\n\n", 5).empty());
    CHECK(last_lines("x\r\n\r\ny", 5) == std::vector<std::string>{"x", "y"});
    CHECK(last_lines("\x1b[31mred\x1b[0m \x07" "bell \x1b]0;title\x07" "end", 1) == std::vector<std::string>{"red bell end"});
    CHECK(last_lines("\xff", 1) == std::vector<std::string>{"\xef\xbf\xbd"});
    CHECK(last_lines(std::string(5000, 'x'), 1)[0].size() == 300);
    const std::string log = "Kernel panic - not syncing: x\n\n===== boot @ 2026-01-01T00:00:00Z =====\n\nnew\n";
    CHECK(panic_of(last_boot(log)).empty());
    CHECK(panic_of(log) == "x");
    CHECK(panic_of(last_boot("no marker\nKernel panic - not syncing: y")) == "y");
}

TEST_CASE("a panic is the kernel's word, not an app's")
{
    CHECK(panic_of("[    2.046987] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n[    2.1] CPU: 0\n") == "VFS: Unable to mount root fs");
    CHECK(panic_of("web | half a li[   12.5] Kernel panic - not syncing: Oops\n") == "Oops"); // cut into what was being written
    CHECK(panic_of("[    1.0] Kernel panic - not syncing: \n") == "unknown");
    CHECK(panic_of("web | Kernel panic - not syncing: no\n").empty());
    CHECK(panic_of("web | about [x] Kernel panic - not syncing: no\n").empty());
    CHECK(panic_of("web | Kernel panic - not syncing: no\n[  3.0] Kernel panic - not syncing: yes\n") == "yes");
    CHECK(panic_of("[    1.0] Kernel panic - not syncing: " + std::string(5000, 'x')).size() == 200);
    CHECK(hangs_in_panic("[    1.8] ---[ end Kernel panic - not syncing: VFS ]---\r\n"));
    CHECK(hangs_in_panic("---[ end Kernel panic - not syncing: VFS ]---\n"));
    CHECK_FALSE(hangs_in_panic("[    1.8] ---[ end Kernel panic - not syncing: VFS ]---\nit went on\n"));
    CHECK_FALSE(hangs_in_panic("web | [    1.8] ---[ end Kernel panic - not syncing: VFS ]---\n"));
    CHECK_FALSE(hangs_in_panic("[1.0] [2.0] ---[ end Kernel panic - not syncing: VFS ]---\n"));
    CHECK_FALSE(hangs_in_panic("[    1.8] Kernel panic - not syncing: VFS\n"));
    CHECK_FALSE(hangs_in_panic(""));
}

TEST_CASE("restarts back off and end")
{
    const RestartPolicy policy;
    const std::uint64_t expected[] = {5000, 10000, 20000, 40000, 80000};
    for (std::uint32_t i = 0; i < 5; ++i) { CHECK(restart_delay(policy, i) == expected[i]); }
    CHECK_FALSE(restart_delay(policy, 5));
    RestartPolicy other = policy;
    other.max_retries = 100;
    CHECK(restart_delay(other, 90) == 300'000);
    other.enabled = false;
    CHECK_FALSE(restart_delay(other, 0));
}

TEST_CASE("escape sequences and broken text")
{
    CHECK(strip_ansi("a\x1b[1;31mb\x1b[Kc\x1b(d") == "abcd");
    CHECK(strip_ansi("\x1b") == "");
    CHECK(strip_ansi("\x1b[") == "");
    CHECK(strip_ansi("x\x1b]8;;u\x1b\\y") == "xy");
    CHECK(lossy_utf8("h\xc3\xa9") == "h\xc3\xa9");
    CHECK(lossy_utf8("\xc0\x80") == "\xef\xbf\xbd\xef\xbf\xbd");
    CHECK(lossy_utf8("\xed\xa0\x80").size() == 9);
    CHECK(lossy_utf8("a\xe2\x82") == "a\xef\xbf\xbd\xef\xbf\xbd");
    CHECK(lossy_utf8("\xf0\x9f\x98\x80") == "\xf0\x9f\x98\x80");
}
