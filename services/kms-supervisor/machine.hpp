#pragma once
#include "services/kms-supervisor/config.hpp"
#include "services/kms-supervisor/meta.hpp"
#include <optional>
#include <vector>

namespace dstack::kms_supervisor
{

using Time = std::chrono::steady_clock::time_point;

enum class Phase
{
    stopped,  ///< never started yet
    starting, ///< runs and has not been seen ready
    ready,
    unready, ///< runs (or is external) and is not ready
    backoff, ///< ended; will be started again
    failed,  ///< an operator must act
};
std::string_view to_string(Phase phase);

/// What became of the KMS, to be told to the world.
enum class Notice
{
    starting,
    ready,
    unready,
    failed,
    identity_pinned,
    identity_changed,
};

/// All decisions about one KMS: what its state is, when it is started, killed, given up. No clock, no I/O: each input
/// says when it happened, each output says what is to be done.
class Machine
{
  public:
    Machine(RestartPolicy policy, bool local, milliseconds probe_interval, std::optional<Identity> pinned);

    struct Outcome
    {
        std::vector<Notice> notices{};
        bool kill = false;             ///< end the process; `exited` will follow
        std::optional<Identity> pin{}; ///< make this durable, then call `pinned`
    };

    /// A process was started, or one of an earlier supervisor was adopted.
    Outcome started(Time now, std::uint64_t pid, bool adopted);
    Outcome exited(Time now, std::string reason);
    Outcome probed(Time now, const Probe& probe);
    Outcome pinned(Time now, const Identity& identity);
    /// Something else that only an operator can mend, such as a damaged pin.
    Outcome gave_up(std::string reason);

    Phase phase() const { return phase_; }
    const std::string& reason() const { return reason_; }
    std::uint64_t pid() const { return pid_; }
    std::uint32_t restarts() const { return restarts_; }
    const std::optional<Identity>& pinned_identity() const { return pinned_; }
    /// Who answered instead of the pinned one; empty unless phase is failed for that reason.
    const Identity& other() const { return other_; }

    /// When a process is to be started; nullopt while one runs, after giving up, and for an external KMS.
    std::optional<Time> start_at() const { return start_at_; }
    /// How long until the next probe; nullopt when there is nothing to ask.
    std::optional<milliseconds> probe_after(Time now) const;

  private:
    Outcome became_ready(Time now);
    Outcome not_ready(Time now, const Probe& probe);
    Outcome fail(std::string reason, std::vector<Notice> notices);
    milliseconds backoff() const;

    RestartPolicy policy_;
    bool local_;
    milliseconds probe_interval_;
    std::optional<Identity> pinned_;
    Phase phase_ = Phase::stopped;
    std::string reason_;
    std::uint64_t pid_ = 0;
    std::uint32_t restarts_ = 0;
    Identity other_;
    std::optional<Time> start_at_ = Time{};
    Time since_{};    ///< of the process, or of an external KMS's first probe
    Time answered_{}; ///< last sign of life
    std::optional<Time> ready_since_;
    bool killed_ = false; ///< asked for already
};

} // namespace dstack::kms_supervisor
