#pragma once
#include "bus/schema/lease.hpp"
#include "services/allocator/host.hpp"
#include "services/allocator/reconcile.hpp"
#include <memory>
#include <mutex>

namespace dstack::allocator
{

/// One pair of eyes for everything but reservations, which have their own. Used on pool threads, one at a time.
struct Eyes
{
    explicit Eyes(bool privileged_ports) : kernel(privileged_ports) {}
    std::mutex mutex;
    Looker looker;
    Kernel kernel;
};

struct Looked
{
    std::vector<Use> uses;
    std::uint64_t took_us = 0;
    std::uint64_t cpu_us = 0;
};
Looked look_at(Eyes& eyes);

schema::HostUse use_on_bus(const Use& use);
/// With the leases that cover them.
std::vector<schema::HostUse> uses_on_bus(const std::vector<Use>& uses, const std::vector<Watched>& leases);

/// What stands in the way of these, and in words why; `leases` have the number that is asked about.
schema::LeaseExplain::Reply explain(const std::vector<Resource>& wanted, const std::vector<schema::Lease>& leases, Eyes& eyes);

} // namespace dstack::allocator
