#pragma once
#include "shared/base/result.hpp"
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace dstack::kms_supervisor
{

using std::chrono::milliseconds;

/// When to start again, and when to give up.
struct RestartPolicy
{
    milliseconds backoff_initial{200}; ///< before the first restart; doubles each time
    milliseconds backoff_max{10'000};
    std::uint32_t budget = 5; ///< restarts without `stable_after` of readiness in between; then failed(crash_loop)
    milliseconds stable_after{30'000}; ///< ready for that long: the budget is whole again
    milliseconds hung_after{15'000};   ///< a process that answers nothing for that long is killed and counts as ended
};

struct Config
{
    bool local = true;                          ///< mode: "local" starts dstack-kms-local, "external" only probes `url`
    std::string url = "https://127.0.0.1:8443"; ///< without /prpc
    std::string program;                        ///< local: dstack-kms-local
    std::string program_config;                 ///< local: its --config
    std::string program_log;                    ///< local: its stderr is appended here; empty: nowhere
    std::string state_dir;                      ///< the pinned identity and the KMS's pid; created with mode 0700
    milliseconds probe_interval{5'000};         ///< while ready
    milliseconds probe_timeout{5'000};
    RestartPolicy restart{};
    std::string bus_directory; ///< empty: without the mesh
};

/// [kms] mode url program config log state_dir probe_interval_ms probe_timeout_ms;
/// [restart] backoff_initial_ms backoff_max_ms budget stable_after_ms hung_after_ms; [bus] directory.
Result<Config> parse_config(std::string_view toml);

} // namespace dstack::kms_supervisor
