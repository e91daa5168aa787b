#include "services/kms-supervisor/machine.hpp"
#include "tests/catch.hpp"

using namespace dstack::kms_supervisor;
using std::chrono::seconds;

namespace
{

const Identity ours{std::string(64, 'a'), std::string(66, 'b')};
const Identity theirs{std::string(64, 'c'), std::string(66, 'd')};
const Probe good{Probe::Kind::ready, ours, ""};
const Probe foreign{Probe::Kind::ready, theirs, ""};
const Probe silent{Probe::Kind::silent, {}, "connection_refused"};
const Probe denied{Probe::Kind::answered, {}, "GetMeta: status 400"};
constexpr Time t0{seconds{1000}};

RestartPolicy policy()
{
    RestartPolicy p;
    p.backoff_initial = milliseconds{100};
    p.backoff_max = milliseconds{400};
    p.budget = 4;
    p.stable_after = seconds{30};
    p.hung_after = seconds{15};
    return p;
}

Machine local(std::optional<Identity> pinned = ours) { return {policy(), true, seconds{5}, std::move(pinned)}; }
Machine external(std::optional<Identity> pinned = ours) { return {policy(), false, seconds{5}, std::move(pinned)}; }

using Notices = std::vector<Notice>;

} // namespace

TEST_CASE("a KMS is started, seen ready, and watched")
{
    auto m = local();
    CHECK(m.phase() == Phase::stopped);
    REQUIRE(m.start_at());
    CHECK(*m.start_at() <= t0);
    CHECK_FALSE(m.probe_after(t0));

    CHECK(m.started(t0, 42, false).notices == Notices{Notice::starting});
    CHECK(m.pid() == 42);
    CHECK_FALSE(m.start_at());
    CHECK(m.probe_after(t0) < milliseconds{100});
    CHECK(m.probed(t0 + milliseconds{20}, silent).notices.empty()); // not up yet is no news
    CHECK(m.probed(t0 + milliseconds{40}, denied).notices.empty()); // nor is a webhook that is not up yet
    CHECK(m.phase() == Phase::starting);
    CHECK(m.probed(t0 + milliseconds{60}, good).notices == Notices{Notice::ready});
    CHECK(m.phase() == Phase::ready);
    CHECK(m.probe_after(t0) == seconds{5});
    CHECK(m.probed(t0 + seconds{5}, good).notices.empty());
}

TEST_CASE("the first identity is pinned before the KMS is called ready")
{
    auto m = local({});
    (void)m.started(t0, 42, false);
    const auto seen = m.probed(t0, good);
    REQUIRE(seen.pin);
    CHECK(*seen.pin == ours);
    CHECK(seen.notices.empty());
    CHECK(m.phase() == Phase::starting);
    CHECK(m.pinned(t0, *seen.pin).notices == Notices{Notice::identity_pinned, Notice::ready});
    CHECK(m.pinned_identity() == ours);
    CHECK(m.probed(t0 + seconds{5}, foreign).notices == Notices{Notice::identity_changed, Notice::failed});
}

TEST_CASE("what does not answer rightly is unready once, and ready again once")
{
    auto m = local();
    (void)m.started(t0, 42, false);
    (void)m.probed(t0, good);
    CHECK(m.probed(t0 + seconds{5}, denied).notices == Notices{Notice::unready});
    CHECK(m.reason() == denied.reason);
    CHECK(m.probe_after(t0) < seconds{1});
    const auto again = m.probed(t0 + seconds{6}, silent);
    CHECK(again.notices.empty());
    CHECK_FALSE(again.kill);
    CHECK(m.reason() == silent.reason);
    CHECK(m.probed(t0 + seconds{7}, good).notices == Notices{Notice::ready});
    CHECK(m.reason().empty());
    CHECK(m.restarts() == 0);
}

TEST_CASE("a KMS that never gets ready is called unready after its grace")
{
    auto m = local();
    (void)m.started(t0, 42, false);
    CHECK(m.probed(t0 + milliseconds{1999}, denied).notices.empty());
    CHECK(m.probed(t0 + milliseconds{2000}, denied).notices == Notices{Notice::unready});
}

TEST_CASE("a process that answers nothing is killed once; one that answers errors never")
{
    auto hung = local();
    (void)hung.started(t0, 42, false);
    (void)hung.probed(t0 + seconds{1}, good);
    CHECK_FALSE(hung.probed(t0 + seconds{10}, silent).kill);
    CHECK(hung.probed(t0 + seconds{16}, silent).kill);
    CHECK_FALSE(hung.probed(t0 + seconds{17}, silent).kill);

    auto complaining = local();
    (void)complaining.started(t0, 42, false);
    for (int i = 0; i < 100; ++i) { CHECK_FALSE(complaining.probed(t0 + seconds{i}, denied).kill); }

    auto remote = external();
    for (int i = 0; i < 100; ++i) { CHECK_FALSE(remote.probed(t0 + seconds{i}, silent).kill); }
}

TEST_CASE("restarts wait longer and longer, then the supervisor gives up")
{
    auto m = local();
    auto now = t0;
    for (const auto delay : {100, 200, 400, 400})
    {
        (void)m.started(now, 42, false);
        const auto out = m.exited(now, "exit");
        CHECK(out.notices == Notices{Notice::unready});
        CHECK(m.phase() == Phase::backoff);
        CHECK(m.pid() == 0);
        REQUIRE(m.start_at());
        CHECK(*m.start_at() - now == milliseconds{delay});
        CHECK_FALSE(m.probe_after(now));
        now = *m.start_at();
    }
    (void)m.started(now, 42, false);
    CHECK(m.exited(now, "root keys are gone").notices == Notices{Notice::failed});
    CHECK(m.phase() == Phase::failed);
    CHECK(m.reason() == "crash_loop: 4 restarts; last: root keys are gone");
    CHECK_FALSE(m.start_at());
    CHECK_FALSE(m.probe_after(now));
}

TEST_CASE("readiness for a while makes the budget whole, short readiness does not")
{
    for (const bool stable : {true, false})
    {
        auto m = local();
        (void)m.started(t0, 42, false);
        (void)m.exited(t0, "exit");
        (void)m.started(t0, 43, false);
        CHECK(m.restarts() == 1);
        (void)m.probed(t0 + seconds{1}, good);
        (void)m.probed(t0 + seconds{1} + (stable ? seconds{30} : seconds{29}), good);
        CHECK(m.restarts() == (stable ? 0U : 1U));
    }
    auto flapping = local();
    (void)flapping.started(t0, 42, false);
    (void)flapping.exited(t0, "exit");
    (void)flapping.started(t0, 43, false);
    for (int i = 0; i < 10; ++i)
    {
        (void)flapping.probed(t0 + seconds{20 * i + 1}, good);
        (void)flapping.probed(t0 + seconds{20 * i + 10}, denied);
    }
    CHECK(flapping.restarts() == 1);
}

TEST_CASE("another identity fails closed, for good when the KMS is ours")
{
    auto m = local();
    (void)m.started(t0, 42, false);
    const auto out = m.probed(t0, foreign);
    CHECK(out.notices == Notices{Notice::identity_changed, Notice::failed});
    CHECK(out.kill);
    CHECK(m.other() == theirs);
    CHECK(m.exited(t0, "killed").notices.empty());
    CHECK(m.phase() == Phase::failed);
    CHECK(m.reason().starts_with("identity_changed"));
    CHECK_FALSE(m.start_at());
    CHECK(m.probed(t0 + seconds{1}, good).notices.empty());
    CHECK(m.phase() == Phase::failed);

    for (const auto& half :
         {Identity{ours.ca_fingerprint, theirs.k256_pubkey}, Identity{theirs.ca_fingerprint, ours.k256_pubkey}})
    {
        auto other = local();
        (void)other.started(t0, 42, false);
        CHECK(other.probed(t0, {Probe::Kind::ready, half, ""}).notices ==
              Notices{Notice::identity_changed, Notice::failed});
    }
}

TEST_CASE("an external KMS that is the pinned one again is ready again")
{
    auto m = external();
    CHECK_FALSE(m.start_at());
    CHECK(m.probe_after(t0));
    CHECK(m.probed(t0, good).notices == Notices{Notice::ready});
    const auto changed = m.probed(t0 + seconds{5}, foreign);
    CHECK(changed.notices == Notices{Notice::identity_changed, Notice::failed});
    CHECK_FALSE(changed.kill);
    CHECK(m.probe_after(t0) == seconds{5});
    CHECK(m.probed(t0 + seconds{10}, foreign).notices.empty()); // told once
    CHECK(m.probed(t0 + seconds{15}, silent).notices.empty());
    CHECK(m.phase() == Phase::failed);
    CHECK(m.probed(t0 + seconds{20}, good).notices == Notices{Notice::ready});
}

TEST_CASE("an external KMS that is not there is unready after its grace")
{
    auto m = external({});
    CHECK(m.probed(t0, silent).notices.empty());
    CHECK(m.probed(t0 + seconds{3}, silent).notices == Notices{Notice::unready});
}

TEST_CASE("a KMS of an earlier supervisor is adopted without a word, until it answers")
{
    auto m = local();
    CHECK(m.started(t0, 42, true).notices.empty());
    CHECK(m.phase() == Phase::starting);
    CHECK(m.probed(t0, good).notices == Notices{Notice::ready});
}

TEST_CASE("a late answer of a process that has ended changes nothing")
{
    auto m = local();
    (void)m.started(t0, 42, false);
    (void)m.exited(t0, "exit");
    CHECK(m.probed(t0, good).notices.empty());
    CHECK(m.phase() == Phase::backoff);
}

TEST_CASE("what only an operator can mend starts nothing")
{
    auto m = local({});
    CHECK(m.gave_up("pin_damaged: x").notices == Notices{Notice::failed});
    CHECK_FALSE(m.start_at());
    CHECK_FALSE(m.probe_after(t0));
    CHECK(m.reason() == "pin_damaged: x");
}
