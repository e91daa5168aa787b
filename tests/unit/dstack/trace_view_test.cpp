#include "services/dstack/trace_view.hpp"
#include "tests/catch.hpp"
#include <nlohmann/json.hpp>

using namespace dstack::cli;

namespace
{
const std::string id(32, 'a');

std::string parent(const char* span) { return "00-" + id + "-" + span + "-01"; }

TraceEvent event(std::uint64_t time, const char* type, const char* data, std::string traceparent)
{
    TraceEvent out;
    out.time_ms = time;
    out.type = type;
    out.source = "test";
    out.severity = "info";
    out.traceparent = std::move(traceparent);
    out.data = data;
    return out;
}

Trace sample()
{
    TraceCollector collector{id};
    collector.add(event(900, "vm.ready", R"({"vm_id":"v1"})", ""));  // before it began
    collector.add(event(1005, "deploy.started", R"({"operation":"op-1","kind":"create","name":"hello","app_id":"a1"})", parent("1111111111111111")));
    collector.add(event(1010, "command.finished", R"({"command":"deploy.create","service":"deployer","caller":"operator:uid=1:pid=2","code":"ok","took_ms":10,"waited_ms":0})",
                        parent("2222222222222222")));
    collector.add(event(1020, "lease.granted", "{}", parent("3333333333333333")));
    collector.add(event(1021, "command.finished", R"({"command":"lease.reserve","service":"allocator","caller":"deployer","code":"ok","took_ms":8,"waited_ms":0})",
                        parent("3333333333333333")));
    collector.add(event(1022, "deploy.step", R"({"operation":"op-1","step":"lease","state":"done","detail":"cid 3","took_ms":12})", parent("4444444444444444")));
    collector.add(event(1500, "vm.boot_progress", R"({"vm_id":"v1","phase":"x"})", parent("5555555555555555")));
    collector.add(event(1600, "auth.decided", R"({"decision":{"app_id":"a1"}})", ""));
    collector.add(event(1601, "auth.decided", R"({"decision":{"app_id":"other"}})", ""));
    collector.add(event(1700, "deploy.step", R"({"operation":"op-1","step":"boot","state":"done","detail":"","took_ms":600})", parent("6666666666666666")));
    collector.add(event(1710, "deploy.failed", R"({"operation":"op-1","kind":"create","name":"hello","step":"probe","code":"deadline_exceeded","reason":"no answer"})",
                        parent("7777777777777777")));
    collector.add(event(9000, "vm.exited", R"({"vm_id":"v1"})", ""));
    return collector.build();
}
} // namespace

TEST_CASE("a trace is a tree of commands, an operation, its steps and events")
{
    const Trace trace = sample();
    CHECK(trace.events == 9); // eight, and one related
    CHECK(trace.begin_ms == 1000);
    CHECK(trace.end_ms == 1710);
    REQUIRE(trace.roots.size() == 2);
    CHECK(trace.roots[0].name == "deploy.create");
    CHECK(trace.roots[0].begin_ms == 1000);
    CHECK(trace.roots[0].end_ms == 1010);
    CHECK(trace.roots[0].children.empty()); // the lease step is within it by the clock only
    const TraceNode& work = trace.roots[1];
    CHECK(work.name == "create hello");
    CHECK(work.status == "deadline_exceeded");
    CHECK(work.bad);
    CHECK(work.end_ms == 1710);
    REQUIRE(work.children.size() == 2);
    const TraceNode& lease = work.children[0];
    CHECK(lease.name == "lease");
    REQUIRE(lease.children.size() == 1);
    CHECK(lease.children[0].name == "lease.reserve");
    REQUIRE(lease.children[0].children.size() == 1);
    CHECK(lease.children[0].children[0].name == "lease.granted");
    const TraceNode& boot = work.children[1];
    REQUIRE(boot.children.size() == 2);
    CHECK(boot.children[0].name == "vm.boot_progress");
    CHECK(!boot.children[0].related);
    CHECK(boot.children[1].name == "auth.decided");
    CHECK(boot.children[1].related);
    CHECK(trace_text(trace) ==
          "trace aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa: 9 events in 710 ms, from 1970-01-01T00:00:01.000Z\n"
          "     +0 ms      10 ms  deploy.create  operator:uid=1:pid=2 to deployer\n"
          "     +5 ms     705 ms  create hello [deadline_exceeded]  operation op-1: probe: no answer\n"
          "    +10 ms      12 ms  |- lease  cid 3\n"
          "    +13 ms       8 ms  |  `- lease.reserve  deployer to allocator\n"
          "    +20 ms             |     `- lease.granted\n"
          "   +100 ms     600 ms  `- boot\n"
          "   +500 ms                |- vm.boot_progress  vm_id=v1 phase=x\n"
          "   +600 ms                `- ~ auth.decided  decision={\"app_id\":\"a1\"}\n"
          "~ carries no trace: about the same app or VM, at the same time\n");
    const auto json = nlohmann::json::parse(trace_json(trace));
    CHECK(json["spans"][1]["children"][0]["duration_ms"] == 12);
    CHECK(json["spans"][1]["children"][0]["offset_ms"] == 10);
    CHECK(!json["spans"][1]["children"][1]["children"][0].contains("duration_ms"));
}

TEST_CASE("an operation that still runs has no end")
{
    TraceCollector collector{id};
    collector.add(event(1000, "deploy.started", R"({"operation":"op-1","kind":"create","name":"x"})", parent("1111111111111111")));
    collector.add(event(60'000, "vm.started", "{}", parent("2222222222222222")));
    const Trace trace = collector.build();
    REQUIRE(trace.roots.size() == 1);
    CHECK(trace.roots[0].status == "running");
    REQUIRE(trace.roots[0].children.size() == 1);
    CHECK(nlohmann::json::parse(trace_json(trace))["spans"][0]["duration_ms"].is_null());
}

TEST_CASE("what names a trace")
{
    struct Row
    {
        const char* text;
        bool yes;
    };
    const Row rows[] = {{"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", true},
                        {"00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-1111111111111111-01", true},
                        {"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", false},
                        {"hello", false},
                        {"", false},
                        {"00-zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-1111111111111111-01", false},
                        {"00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-1111111111111111+01", false}};
    for (const Row& row : rows)
    {
        INFO(row.text);
        CHECK((as_trace_id(row.text) == id) == row.yes);
    }
}

TEST_CASE("hostile events do not grow it or drive the terminal")
{
    TraceCollector collector{id};
    for (std::uint64_t i = 0; i < TraceCollector::max_candidates * 3; ++i) { collector.add(event(i, "vm.ready", "{}", "")); }
    for (const char* data : {"", "null", "[1]", R"({"operation":7,"took_ms":"x"})", R"({"step":"\u001b[2J","took_ms":99999999999})"})
    {
        for (const char* type : {"deploy.started", "deploy.step", "deploy.failed", "command.finished", "x\x1b"})
        {
            collector.add(event(5, type, data, parent("1111111111111111")));
        }
    }
    const Trace trace = collector.build();
    CHECK(trace_text(trace).find('\x1b') == std::string::npos);
    CHECK(nlohmann::json::parse(trace_json(trace)).is_object());
}

TEST_CASE("a command stands below the step whose span it carries, whatever the clock says")
{
    TraceCollector collector{id};
    collector.add(event(1000, "deploy.started", R"({"operation":"op-1","kind":"create","name":"hello","app_id":"a1"})", parent("1111111111111111")));
    collector.add(event(1010, "deploy.step", R"({"operation":"op-1","step":"create_vm","state":"done","detail":"","took_ms":10})", parent("4444444444444444")));
    const char* bind = R"({"command":"lease.bind","service":"allocator","caller":"deployer","code":"ok","took_ms":0,"waited_ms":0})";
    collector.add(event(1010, "command.finished", bind, parent("5555555555555555"))); // in the millisecond in which the step before it ended
    collector.add(event(1010, "lease.drift", "{}", parent("5555555555555555")));
    collector.add(event(1014, "deploy.step", R"({"operation":"op-1","step":"bind","state":"done","detail":"","took_ms":3})", parent("5555555555555555")));
    const Trace trace = collector.build();
    REQUIRE(trace.roots.size() == 1);
    REQUIRE(trace.roots[0].children.size() == 2);
    CHECK(trace.roots[0].children[0].children.empty());
    const TraceNode& step = trace.roots[0].children[1];
    CHECK(step.name == "bind");
    REQUIRE(step.children.size() == 1);
    CHECK(step.children[0].name == "lease.bind");
    REQUIRE(step.children[0].children.size() == 1);
    CHECK(step.children[0].children[0].name == "lease.drift");
}
