#pragma once
#include "services/vmm-local/config.hpp"
#include "shared/runtime/daemon.hpp"

namespace dstack::vmm
{

Task<Result<Done>> serve(Daemon& daemon, Config config);

} // namespace dstack::vmm
