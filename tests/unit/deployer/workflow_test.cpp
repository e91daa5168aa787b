#include "services/deployer/vmm_wire.hpp"
#include "tests/unit/deployer/fake_host.hpp"
#include "tests/catch.hpp"

using namespace dstack;
using namespace dstack::deployer;
using namespace dstack::deployer::test;

namespace
{
bool clean(const FakeHost& host)
{
    return host.leased.empty() && host.bound.empty() && host.allowed.empty() && host.vms_.empty();
}

std::vector<std::string> steps_said(const FakeHost& host, const std::string& state)
{
    std::vector<std::string> out;
    for (const Fact& fact : host.said)
    {
        const auto* step = std::get_if<schema::DeployStep>(&fact);
        if (step != nullptr && step->state == state) { out.push_back(step->step); }
    }
    return out;
}

template <class T>
std::vector<T> facts_of(const FakeHost& host)
{
    std::vector<T> out;
    for (const Fact& fact : host.said)
    {
        if (const auto* one = std::get_if<T>(&fact)) { out.push_back(*one); }
    }
    return out;
}
} // namespace

TEST_CASE("a deploy goes through its steps and ends with evidence")
{
    FakeHost host;
    const auto end = run(host, deploy_work(host));
    REQUIRE(end);
    CHECK(end->operation.state == "succeeded");
    CHECK(end->operation.evidence == "http 200 from 127.0.0.1:18001");
    CHECK(steps_said(host, "done") ==
          std::vector<std::string>{"image", "lease", "allow", "create_vm", "bind", "boot", "probe"});
    REQUIRE(facts_of<schema::DeploySucceeded>(host).size() == 1);
    CHECK(facts_of<schema::DeploySucceeded>(host)[0].evidence == end->operation.evidence);
    CHECK(end->app.image == "dstack-dev-0.5.10"); // the newest, not the last in the alphabet
    CHECK(end->app.cid == 1000);
    CHECK(host.bound.contains("hello"));
    CHECK(host.vms_.size() == 1);
    CHECK_FALSE(end->gone);
}

TEST_CASE("a deploy that crashes anywhere is resumed to the same end, once")
{
    FakeHost whole;
    REQUIRE(run(whole, deploy_work(whole)));
    const int calls = whole.calls;
    REQUIRE(calls > 20);
    for (const bool keys : {true, false})
    {
        for (int at = 1; at <= calls; ++at)
        {
            for (const bool before : {true, false})
            {
                FakeHost host;
                host.honours_keys = keys;
                host.crash_at = at;
                host.crash_before = before;
                INFO("crash at call " << at << (before ? " before" : " after") << " its effect");
                const auto first = run(host, deploy_work(host));
                host.crash_at = -1;
                if (first) { continue; } // that call has nothing after its effect
                Work again = host.journal ? *host.journal : deploy_work(host);
                if (again.operation.ended()) { continue; } // it had ended, and nobody heard
                const auto end = run(host, std::move(again));
                REQUIRE(end);
                CHECK(end->operation.state == "succeeded");
                CHECK(host.vms_.size() == 1);
                CHECK(host.created == 1);
                CHECK(host.allowed.size() == 1);
                CHECK(host.bound.size() == 1);
                // What the policy got through this operation is known, so that a remove takes it back.
                CHECK(end->app.allow_begun);
                CHECK(facts_of<schema::DeploySucceeded>(host).size() == 1);
            }
        }
    }
}

TEST_CASE("a deploy that fails anywhere leaves nothing behind and says why")
{
    struct Row
    {
        const char* call;
        Errc code;
        const char* step;
    };
    const auto row = GENERATE(Row{"images", Errc::unavailable, "image"}, Row{"reserve", Errc::already_exists, "lease"},
                              Row{"allow", Errc::unavailable, "allow"}, Row{"create_vm", Errc::invalid_argument, "create_vm"},
                              Row{"create_vm", Errc::unavailable, "create_vm"}, Row{"bind", Errc::unavailable, "bind"});
    FakeHost host;
    host.fails[row.call] = Error{row.code, "no luck", "try again", {}};
    const auto end = run(host, deploy_work(host));
    REQUIRE(end);
    CHECK(end->operation.state == "failed");
    CHECK(end->operation.failed_step == row.step);
    CHECK(end->operation.code == to_string(row.code));
    CHECK(end->operation.reason == "no luck");
    CHECK(end->operation.hint == "try again");
    CHECK(end->gone);
    CHECK(clean(host));
    REQUIRE(facts_of<schema::DeployFailed>(host).size() == 1);
    CHECK(facts_of<schema::DeployFailed>(host)[0].reason == "no luck");
}

TEST_CASE("a failed deploy that crashes while it undoes leaves nothing behind either")
{
    FakeHost whole;
    whole.boot_error = "failed to start containers";
    REQUIRE(run(whole, deploy_work(whole)));
    REQUIRE(clean(whole));
    for (int at = 1; at <= whole.calls; ++at)
    {
        for (const bool before : {true, false})
        {
            FakeHost host;
            host.boot_error = whole.boot_error;
            host.crash_at = at;
            host.crash_before = before;
            INFO("crash at call " << at << (before ? " before" : " after") << " its effect");
            const auto first = run(host, deploy_work(host));
            host.crash_at = -1;
            if (!first)
            {
                Work again = host.journal ? *host.journal : deploy_work(host);
                if (!again.operation.ended())
                {
                    const auto end = run(host, std::move(again));
                    REQUIRE(end);
                    CHECK(end->operation.state == "failed");
                }
            }
            CHECK(clean(host));
            CHECK(host.created == 1);
            CHECK(facts_of<schema::DeployFailed>(host).size() == 1);
        }
    }
}

TEST_CASE("a boot that goes wrong fails the deploy with the guest's words")
{
    FakeHost host;
    SECTION("boot error")
    {
        host.boot_error = "image busybox:9 is not in the store; it has: busybox:1.35";
        const auto end = run(host, deploy_work(host));
        REQUIRE(end);
        CHECK(end->operation.code == "failed_precondition");
        CHECK(end->operation.reason == "the guest reported: " + host.boot_error);
        CHECK_FALSE(end->operation.denied);
    }
    SECTION("panic")
    {
        host.exits_with = "kernel panic";
        const auto end = run(host, deploy_work(host));
        REQUIRE(end);
        CHECK(end->operation.reason == "the VM exited while booting: kernel panic (last reported: done)");
        CHECK(end->operation.hint == "its console: `dstack logs hello`");
    }
    SECTION("never done")
    {
        host.boot_script = {"booting", "starting containers"};
        const auto end = run(host, deploy_work(host));
        REQUIRE(end);
        CHECK(end->operation.code == "deadline_exceeded");
        CHECK(end->operation.reason.find("within 60 s; last seen: starting containers") != std::string::npos);
    }
    SECTION("never answers")
    {
        host.refused_probes = 1'000'000;
        const auto end = run(host, deploy_work(host));
        REQUIRE(end);
        CHECK(end->operation.failed_step == "probe");
        CHECK(end->operation.code == "deadline_exceeded");
    }
    SECTION("denied")
    {
        host.boot_error = "kms refused the keys";
        Work work = deploy_work(host);
        work.app.allow = false;
        schema::Decision decision;
        decision.allowed = false;
        decision.rule = "compose_hash";
        decision.reason = "compose hash not allowed";
        decision.expected = "one of 0 allowed hashes";
        decision.got = work.app.compose_hash;
        decision.compose_hash = work.app.compose_hash;
        decision.time = rfc3339(host.now + 1);
        host.decision = decision;
        const auto end = run(host, std::move(work));
        REQUIRE(end);
        CHECK(end->operation.denied);
        CHECK(end->operation.code == "permission_denied");
        CHECK(end->operation.reason.find("denied by rule compose_hash") != std::string::npos);
        CHECK(end->operation.hint.find("--no-allow") != std::string::npos);
        CHECK(facts_of<schema::DeployFailed>(host).at(0).denied);
    }
    CHECK(clean(host));
}

TEST_CASE("a denial of an earlier deploy or of another hash explains nothing")
{
    AppFacts app;
    app.compose_hash = "aa";
    schema::Decision decision;
    decision.compose_hash = "aa";
    decision.rule = "compose_hash";
    decision.time = rfc3339(1'000'000);
    const Error error{Errc::failed_precondition, "boot error", {}, {}};
    CHECK(explain_boot_error(error, decision, app, 1'000'000).denied);
    CHECK_FALSE(explain_boot_error(error, decision, app, 1'002'000).denied);
    CHECK_FALSE(explain_boot_error(error, std::nullopt, app, 0).denied);
    decision.compose_hash = "bb";
    CHECK_FALSE(explain_boot_error(error, decision, app, 1'000'000).denied);
    decision.compose_hash = "aa";
    decision.allowed = true;
    CHECK_FALSE(explain_boot_error(error, decision, app, 1'000'000).denied);
}

TEST_CASE("a VMM that went away before CreateVm was sent keeps nothing")
{
    FakeHost host;
    host.fails["create_vm"] = Error{Errc::unavailable, "connection_refused: vmm", {}, std::string{not_sent}};
    const auto end = run(host, deploy_work(host));
    REQUIRE(end);
    CHECK(end->operation.code == "unavailable");
    CHECK(end->gone);
    CHECK(clean(host));
}

TEST_CASE("a lost answer of CreateVm is no second VM")
{
    FakeHost host;
    host.answer_lost = true;
    const auto end = run(host, deploy_work(host));
    REQUIRE(end);
    CHECK(end->operation.state == "succeeded");
    CHECK(host.created == 1);
    CHECK(end->app.vm_id == "vm-1");
}

TEST_CASE("a VM of the same name and app id that somebody else made is left alone")
{
    FakeHost host;
    const Work work = deploy_work(host);
    host.vms_["theirs"] = {VmSight{"theirs", "hello", work.app.app_id, "running", "done", "", ""}, {}};
    host.fails["bind"] = Error{Errc::internal, "no", {}, {}};
    const auto end = run(host, work);
    REQUIRE(end);
    CHECK(end->operation.state == "failed");
    CHECK(host.vms_.size() == 1);
    CHECK(host.vms_.contains("theirs"));
}

TEST_CASE("what the operator had allowed before stays allowed when the deploy fails")
{
    FakeHost host;
    const Work work = deploy_work(host);
    host.allowed.insert(work.app.compose_hash);
    host.fails["create_vm"] = Error{Errc::internal, "no", {}, {}};
    const auto end = run(host, work);
    REQUIRE(end);
    CHECK(host.allowed.size() == 1);
    CHECK(host.leased.empty());
}

TEST_CASE("a remove pre-empts a deploy at any moment; what is left the remove takes away")
{
    FakeHost whole;
    REQUIRE(run(whole, deploy_work(whole)));
    for (int at = 0; at < whole.calls - 1; ++at)
    {
        FakeHost host;
        host.preempt_at = at;
        INFO("pre-empted after call " << at);
        const auto end = run(host, deploy_work(host));
        REQUIRE(end);
        if (end->operation.state == "failed")
        {
            CHECK(end->operation.code == "aborted");
            CHECK(clean(host));
        }
    }
}

TEST_CASE("an undo that cannot reach the VMM keeps the leases and says what is left")
{
    FakeHost host;
    host.boot_error = "broken";
    host.fails["RemoveVm"] = Error{Errc::unavailable, "connection_refused: vmm", {}, {}};
    auto end = run(host, deploy_work(host));
    REQUIRE(end);
    CHECK(end->operation.state == "failed");
    CHECK_FALSE(end->gone);
    CHECK(end->operation.reason.find("undo create_vm: connection_refused") != std::string::npos);
    CHECK(end->operation.hint.find("dstack rm hello") != std::string::npos);
    CHECK(host.leased.size() == 1); // the VM may still use the port

    host.fails.clear();
    Work remove;
    remove.app = end->app;
    remove.operation = Operation{};
    remove.operation.id = "op-2";
    remove.operation.kind = "remove";
    remove.operation.name = "hello";
    end = run(host, remove);
    REQUIRE(end);
    CHECK(end->operation.state == "succeeded");
    CHECK(end->gone);
    CHECK(clean(host));
}

TEST_CASE("a disk that was full keeps nothing of a failed deploy when there is room again")
{
    FakeHost host;
    const Error full{Errc::resource_exhausted, "database or disk is full", {}, {}};
    for (const char* call : {"allow", "release"}) { host.fails[call] = full; }
    SECTION("the journal can be written")
    {
        const auto end = run(host, deploy_work(host));
        REQUIRE(end);
        CHECK(end->operation.reason.find("undo lease: database or disk is full") != std::string::npos);
        CHECK_FALSE(end->gone);
    }
    SECTION("nor the journal")
    {
        auto work = deploy_work(host);
        work.operation.step = "allow";
        work.app.lease_begun = true;
        work.app.allow_begun = true;
        host.leased.insert("hello");
        host.fails["save"] = full;
        host.mended_at = host.now + 60'000;
        const auto end = run(host, std::move(work));
        REQUIRE(end);
        CHECK(clean(host));
        CHECK(end->gone);
        CHECK(end->operation.code == "resource_exhausted");
        CHECK(end->operation.reason == "database or disk is full");
        REQUIRE(facts_of<schema::DeployFailed>(host).size() == 1);
        CHECK(facts_of<schema::DeployFailed>(host)[0].reason == "database or disk is full");
    }
}

TEST_CASE("remove is repeatable at any crash")
{
    FakeHost base;
    auto deployed = run(base, deploy_work(base));
    REQUIRE(deployed);
    Work remove;
    remove.app = deployed->app;
    remove.operation.id = "op-2";
    remove.operation.kind = "remove";
    remove.operation.name = "hello";
    for (int at = 1; at < 20; ++at)
    {
        for (const bool before : {true, false})
        {
            FakeHost host{base};
            host.calls = 0;
            host.crash_at = at;
            host.crash_before = before;
            host.journal = remove;
            const auto first = run(host, remove);
            host.crash_at = -1;
            if (!first && !host.journal->operation.ended()) { REQUIRE(run(host, *host.journal)); }
            CHECK(clean(host));
        }
    }
}

TEST_CASE("stop asks first and kills when nobody listens; start waits for the answer")
{
    FakeHost host;
    auto deployed = run(host, deploy_work(host));
    REQUIRE(deployed);
    Work work;
    work.app = deployed->app;
    work.operation.id = "op-2";
    work.operation.name = "hello";
    work.operation.kind = "stop";
    work.operation.ready_timeout_ms = 60'000;
    SECTION("asked") {}
    SECTION("forced") { work.operation.force = true; }
    SECTION("cannot be asked") { host.fails["ShutdownVm"] = Error{Errc::unavailable, "no guest agent", {}, {}}; }
    auto end = run(host, work);
    REQUIRE(end);
    CHECK(end->operation.state == "succeeded");
    CHECK(end->operation.evidence == "vmm: stopped");
    CHECK(host.bound.size() == 1); // a stopped app keeps its leases

    work.operation = Operation{};
    work.operation.id = "op-3";
    work.operation.name = "hello";
    work.operation.kind = "start";
    work.operation.ready_timeout_ms = 60'000;
    host.refused_probes = 1;
    end = run(host, work);
    REQUIRE(end);
    CHECK(end->operation.state == "succeeded");
    CHECK(end->operation.evidence == "http 200 from 127.0.0.1:18001");
}

TEST_CASE("no image, an unknown image")
{
    FakeHost host;
    Work work = deploy_work(host);
    SECTION("unknown")
    {
        work.app.wanted_image = "nope";
        const auto end = run(host, work);
        REQUIRE(end);
        CHECK(end->operation.code == "not_found");
        CHECK(end->operation.hint == "the store has: dstack-dev-0.5.6, dstack-dev-0.5.10");
    }
    SECTION("chosen")
    {
        work.app.wanted_image = "dstack-dev-0.5.6";
        const auto end = run(host, work);
        REQUIRE(end);
        CHECK(end->app.image == "dstack-dev-0.5.6");
    }
    SECTION("none")
    {
        host.images_.clear();
        const auto end = run(host, work);
        REQUIRE(end);
        CHECK(end->operation.code == "failed_precondition");
    }
}
