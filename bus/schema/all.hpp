#pragma once
// The whole vocabulary. Prefer the one header that you need.
#include "bus/schema/audit.hpp"
#include "bus/schema/auth.hpp"
#include "bus/schema/bus.hpp"
#include "bus/schema/bus_stats.hpp"
#include "bus/schema/deploy.hpp"
#include "bus/schema/kms.hpp"
#include "bus/schema/lease.hpp"
#include "bus/schema/logs.hpp"
#include "bus/schema/vm.hpp"
