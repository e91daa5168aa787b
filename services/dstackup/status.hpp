#pragma once
#include "shared/base/result.hpp"
#include "shared/process/identity.hpp"
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::up
{

enum class Phase
{
    starting,
    ready,
    stopping,
    stopped,
    backoff,
    failed
};
std::string_view to_string(Phase phase);

/// What the supervisor knows of one service; written to run/dstack/dev/status.json at every change.
struct ServiceStatus
{
    std::string name{};
    Phase phase = Phase::stopped;
    process::Identity process{}; ///< pid 0: none
    bool adopted = false;        ///< started by an earlier supervisor
    std::uint64_t since_ms = 0;  ///< unix time at which this phase began
    std::uint64_t restarts = 0;  ///< since the supervisor began
    std::string last_exit{};     ///< "exit code 70", "killed by signal 9", "ended while nobody watched"
    std::string reason{};        ///< of failed: "crash_loop", "config", ...
    std::string text{};          ///< its own STATUS=; one that runs and cannot do its work says "unhealthy: WHY"
    friend bool operator==(const ServiceStatus&, const ServiceStatus&) = default;
};

struct MeshStatus
{
    process::Identity supervisor{};
    std::vector<ServiceStatus> services{};

    const ServiceStatus* find(std::string_view name) const;
    bool all_ready() const;
    /// All are ready, and none says that it cannot do its work.
    bool healthy() const;
    /// The first service that was given up, or nullptr.
    const ServiceStatus* failed() const;
};

std::string encode(const MeshStatus& status);
/// data_loss for what is not such a document.
Result<MeshStatus> decode_status(std::string_view text);

/// "3 s", "4 min", "2 h", "5 d".
std::string short_duration(std::uint64_t milliseconds);

} // namespace dstack::up
