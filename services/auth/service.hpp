#pragma once
#include "services/auth/config.hpp"
#include "shared/runtime/daemon.hpp"

namespace dstack::auth
{

/// Runs until the daemon is asked to stop.
Task<Result<Done>> serve(Daemon& daemon, Config config);

} // namespace dstack::auth
