#pragma once
#include "services/logs/config.hpp"
#include "shared/runtime/daemon.hpp"

namespace dstack::logs
{

/// Runs until the daemon is asked to stop.
Task<Result<Done>> serve(Daemon& daemon, Config config);

} // namespace dstack::logs
