#include "services/deployer/apps.hpp"
#include "tests/catch.hpp"

using namespace dstack;
using namespace dstack::deployer;

namespace
{
AppFacts facts(std::string name, std::string app_id, std::string vm_id)
{
    AppFacts app;
    app.name = std::move(name);
    app.app_id = std::move(app_id);
    app.compose_hash = app.app_id + "ff";
    app.vm_id = std::move(vm_id);
    app.deployed = true;
    app.ports = {{"tcp", "127.0.0.1", 18000, 80}};
    return app;
}
} // namespace

TEST_CASE("an app is found by name, id, or a beginning of an id that is clear")
{
    std::map<std::string, AppFacts> apps;
    apps["hello"] = facts("hello", "aaaa1111", "11112222-x");
    apps["other"] = facts("other", "aaaa2222", "33334444-x");
    apps["aaaa"] = facts("aaaa", "bbbb1111", "");
    CHECK(*resolve(apps, "hello") == "hello");
    CHECK(*resolve(apps, "aaaa") == "aaaa"); // a name is never mistaken for an id
    CHECK(*resolve(apps, "aaaa2") == "other");
    CHECK(*resolve(apps, "1111") == "hello");
    CHECK(*resolve(apps, "33334444-x") == "other");
    auto none = resolve(apps, "333");
    REQUIRE(!none);
    CHECK(none.error().code == Errc::not_found);
    CHECK(!resolve(apps, ""));
    apps.erase("aaaa");
    auto two = resolve(apps, "aaaa");
    REQUIRE(!two);
    CHECK(two.error().code == Errc::invalid_argument);
}

TEST_CASE("a name that is taken, and the same app again")
{
    const AppFacts existing = facts("hello", "aa", "vm");
    AppFacts wanted = existing;
    wanted.ports.clear();
    CHECK(judge_name(existing, wanted, nullptr).already);
    SECTION("other content") { wanted.compose_hash = "zz"; }
    SECTION("other memory") { wanted.memory_mb = 1024; }
    SECTION("other ports") { wanted.wanted_ports = {{"tcp", "127.0.0.1", 1, 1}}; }
    SECTION("other image") { wanted.wanted_image = "i"; }
    if (!judge_name(existing, wanted, nullptr).error)
    {
        Operation remove;
        remove.kind = "remove";
        CHECK(judge_name(existing, wanted, &remove).error->code == Errc::failed_precondition);
        AppFacts left = existing;
        left.deployed = false;
        CHECK(judge_name(left, wanted, nullptr).error->code == Errc::failed_precondition);
        Operation create;
        create.kind = "create";
        CHECK(judge_name(left, wanted, &create).already);
        return;
    }
    CHECK(judge_name(existing, wanted, nullptr).error->code == Errc::already_exists);
}

TEST_CASE("the state of an app is what is seen, with its evidence")
{
    struct Row
    {
        const char* status;
        const char* progress;
        const char* error;
        const char* probe;
        const char* operation;
        const char* state;
        const char* evidence;
    };
    const Row rows[] = {
        {"running", "starting containers", "", nullptr, "", "booting", "vmm: running, starting containers"},
        {"running", "done", "", "http 200 from x", "", "ready", "http 200 from x"},
        {"running", "running", "", "http 200 from x", "", "ready", "http 200 from x"},
        {"running", "done", "", "", "", "unknown", "vmm: running, done, but no answer: refused"},
        {"running", "done", "", nullptr, "", "booting", "vmm: running, done, port not asked yet"},
        {"running", "done", "oh no", "http 200 from x", "", "failed", "the guest reported: oh no"},
        {"exited", "done", "", nullptr, "", "exited", "vmm: exited: panic"},
        {"exited", "", "oh no", nullptr, "", "failed", "the guest reported: oh no"},
        {"stopped", "", "", nullptr, "", "stopped", "vmm: stopped"},
        {"removing", "", "", nullptr, "", "removing", "vmm: removing"},
        {"running", "done", "", "http 200 from x", "stop", "stopping", "http 200 from x"},
        {"running", "done", "", "http 200 from x", "remove", "removing", "http 200 from x"},
        {"running", "booting", "", nullptr, "create", "booting", "vmm: running, booting"},
        {"strange", "", "", nullptr, "", "unknown", "vmm: strange"},
    };
    for (const Row& row : rows)
    {
        INFO(row.status << " " << row.progress << " " << row.operation);
        Look look;
        look.vmm_answered = true;
        look.vm = VmSight{"vm", "hello", "aa", row.status, row.progress, row.error, ""};
        look.exit_reason = "panic";
        look.operation_kind = row.operation;
        look.now_ms = 7;
        if (row.probe != nullptr) { look.probe = Probe{row.probe, *row.probe == '\0' ? "refused" : "", 5}; }
        const AppSight sight = judge_sight(facts("hello", "aa", "vm"), look);
        CHECK(sight.state == row.state);
        CHECK(sight.evidence == row.evidence);
    }
    Look away;
    away.vmm_error = "connection refused";
    CHECK(judge_sight(facts("hello", "aa", "vm"), away).state == "unknown");
    away.vmm_answered = true;
    CHECK(judge_sight(facts("hello", "aa", "vm"), away).state == "failed");
    CHECK(judge_sight(facts("hello", "aa", ""), away).state == "failed");
    away.operation_kind = "create";
    CHECK(judge_sight(facts("hello", "aa", ""), away).state == "deploying");
}
