#pragma once
#include "services/dstackup/print.hpp"
#include <string>

namespace dstack::up
{

/// `dstackup policy check FILE`: what somebody who comes from upstream has to know about a policy file. The auth process's
/// own reader says it (`dstack-auth --check-policy`). 0: nothing; 7: there are places that relied on "empty means any"; 2:
/// it is no policy; 3: there is no such file.
int policy_check(const Global& global, const std::string& file);

} // namespace dstack::up
