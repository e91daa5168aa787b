#pragma once
#include "services/guest-agent/config.hpp"
#include "shared/runtime/daemon.hpp"

namespace dstack::guest
{

/// Boots the app of the host share, runs it until the power button, SIGTERM or a boot error, and stops it. When it
/// returns, the VM is to be powered off: that is what init does.
Task<Result<Done>> serve(Daemon& daemon, Config config);

} // namespace dstack::guest
