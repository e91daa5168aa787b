#pragma once
#include "services/kms-local/config.hpp"
#include "shared/runtime/daemon.hpp"

namespace dstack::kms
{

/// Loads or makes the root keys, then serves until stopped.
Task<Result<Done>> serve(Daemon& daemon, Config config);

} // namespace dstack::kms
