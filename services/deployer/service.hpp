#pragma once
#include "services/deployer/config.hpp"
#include "shared/runtime/daemon.hpp"

namespace dstack::deployer
{

Task<Result<Done>> serve(Daemon& daemon, Config config);

} // namespace dstack::deployer
