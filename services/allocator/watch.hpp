#pragma once
#include "services/allocator/host_view.hpp"
#include "services/allocator/lease_book.hpp"
#include <set>

namespace dstack::allocator
{

/// Compares the leases with what the host uses, again and again, and tells of what is wrong once: lease.conflict,
/// lease.drift, lease.leaked. It never costs more than a five-hundredth of a core: a look that was dear is followed by a
/// longer pause.
class Watch
{
  public:
    Watch(Loop& loop, const Config& config, LeaseBook& book, bus::Client& bus, std::shared_ptr<Eyes> eyes);
    Task<> run();
    /// The names of the deployer's apps.
    Task<Result<std::set<std::string>>> apps();

  private:
    Task<> compare_once();
    Task<> find_leaks(std::vector<Watched> leases, std::vector<Use> uses);
    Task<Result<Done>> tell(Finding finding);

    Loop& loop_;
    const Config& config_;
    LeaseBook& book_;
    bus::Client& bus_;
    std::shared_ptr<Eyes> eyes_;
    std::set<std::string> told_;       ///< keys of the findings that are known to be there still
    std::set<std::string> suspected_;  ///< leases whose app was missing the last time
    std::set<std::string> leaked_;     ///< and of which that was told
    std::uint64_t cost_us_ = 0;        ///< of the last comparison
    std::uint64_t leaks_checked_ms_ = 0;
};

} // namespace dstack::allocator
