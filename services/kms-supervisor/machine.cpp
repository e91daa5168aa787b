#include "services/kms-supervisor/machine.hpp"
#include <algorithm>

namespace dstack::kms_supervisor
{

namespace
{
/// A KMS that has just started is not called unready: its webhook may still be starting too.
constexpr milliseconds grace{2'000};
constexpr milliseconds probe_while_starting{20};
constexpr milliseconds probe_while_unready{500};
} // namespace

std::string_view to_string(Phase phase)
{
    switch (phase)
    {
    case Phase::stopped:
        return "stopped";
    case Phase::starting:
        return "starting";
    case Phase::ready:
        return "ready";
    case Phase::unready:
        return "unready";
    case Phase::backoff:
        return "backoff";
    case Phase::failed:
        return "failed";
    }
    return "failed";
}

Machine::Machine(RestartPolicy policy, bool local, milliseconds probe_interval, std::optional<Identity> pinned)
    : policy_(policy), local_(local), probe_interval_(probe_interval), pinned_(std::move(pinned))
{
    if (!local_)
    {
        start_at_.reset();
        phase_ = Phase::starting;
    }
}

Machine::Outcome Machine::started(Time now, std::uint64_t pid, bool adopted)
{
    phase_ = Phase::starting;
    pid_ = pid;
    start_at_.reset();
    since_ = answered_ = now;
    killed_ = false;
    if (adopted) { return {}; }
    return {{Notice::starting}, false, {}};
}

Machine::Outcome Machine::exited(Time now, std::string reason)
{
    pid_ = 0;
    ready_since_.reset();
    if (phase_ == Phase::failed) { return {}; }
    if (restarts_ == policy_.budget)
    {
        return fail("crash_loop: " + std::to_string(restarts_) + " restarts; last: " + reason, {});
    }
    start_at_ = now + backoff();
    ++restarts_;
    phase_ = Phase::backoff;
    reason_ = std::move(reason);
    return {{Notice::unready}, false, {}};
}

Machine::Outcome Machine::probed(Time now, const Probe& probe)
{
    const bool running = local_ ? pid_ != 0 : true;
    if (!running || (local_ && phase_ == Phase::failed)) { return {}; }
    if (since_ == Time{}) { since_ = answered_ = now; }
    if (probe.kind == Probe::Kind::silent) { return not_ready(now, probe); }
    answered_ = now;
    if (probe.kind == Probe::Kind::answered) { return not_ready(now, probe); }
    if (!pinned_) { return {{}, false, probe.identity}; }
    if (*pinned_ != probe.identity)
    {
        const bool known = phase_ == Phase::failed && other_ == probe.identity;
        other_ = probe.identity;
        if (known) { return {}; }
        return fail("identity_changed: another KMS answers than the pinned one", {Notice::identity_changed});
    }
    return became_ready(now);
}

Machine::Outcome Machine::pinned(Time now, const Identity& identity)
{
    pinned_ = identity;
    auto out = became_ready(now);
    out.notices.insert(out.notices.begin(), Notice::identity_pinned);
    return out;
}

Machine::Outcome Machine::gave_up(std::string reason) { return fail(std::move(reason), {}); }

Machine::Outcome Machine::became_ready(Time now)
{
    const bool news = phase_ != Phase::ready;
    phase_ = Phase::ready;
    reason_.clear();
    other_ = {};
    if (!ready_since_) { ready_since_ = now; }
    if (now - *ready_since_ >= policy_.stable_after) { restarts_ = 0; }
    return news ? Outcome{{Notice::ready}, false, {}} : Outcome{};
}

Machine::Outcome Machine::not_ready(Time now, const Probe& probe)
{
    ready_since_.reset();
    Outcome out;
    const bool hung = local_ && probe.kind == Probe::Kind::silent && now - answered_ >= policy_.hung_after;
    if (hung && !killed_)
    {
        killed_ = true;
        out.kill = true;
    }
    if (phase_ == Phase::failed) { return out; } // an external KMS that was another one: no news
    reason_ = probe.reason;
    const bool early = phase_ == Phase::starting && now - since_ < grace;
    if (early || phase_ == Phase::unready) { return out; }
    phase_ = Phase::unready;
    out.notices.push_back(Notice::unready);
    return out;
}

Machine::Outcome Machine::fail(std::string reason, std::vector<Notice> notices)
{
    phase_ = Phase::failed;
    reason_ = std::move(reason);
    start_at_.reset();
    ready_since_.reset();
    notices.push_back(Notice::failed);
    return {std::move(notices), local_ && pid_ != 0, {}};
}

milliseconds Machine::backoff() const
{
    auto delay = policy_.backoff_initial;
    for (std::uint32_t i = 0; i < restarts_ && delay < policy_.backoff_max; ++i) { delay *= 2; }
    return std::min(delay, policy_.backoff_max);
}

std::optional<milliseconds> Machine::probe_after(Time now) const
{
    switch (phase_)
    {
    case Phase::stopped:
    case Phase::backoff:
        return {};
    case Phase::starting:
        return since_ == Time{} || now - since_ < grace ? probe_while_starting : probe_while_unready;
    case Phase::unready:
        return std::min(probe_while_unready, probe_interval_);
    case Phase::ready:
        return probe_interval_;
    case Phase::failed:
        return local_ ? std::optional<milliseconds>{} : probe_interval_;
    }
    return {};
}

} // namespace dstack::kms_supervisor
