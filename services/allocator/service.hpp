#pragma once
#include "services/allocator/config.hpp"
#include "shared/runtime/daemon.hpp"

namespace dstack::allocator
{

/// Runs until the daemon is asked to stop.
Task<Result<Done>> serve(Daemon& daemon, Config config);

} // namespace dstack::allocator
