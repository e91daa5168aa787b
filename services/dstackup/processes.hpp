#pragma once
#include "services/dstackup/layout.hpp"
#include "shared/process/identity.hpp"
#include <functional>
#include <optional>
#include <vector>

namespace dstack::up
{

struct Running
{
    process::Identity who{};
    std::string cmdline{}; ///< arguments, each ended by a zero byte
};

/// The processes of this user whose command line `wanted` accepts. A process that ends meanwhile is left out.
std::vector<Running> find_processes(const std::function<bool(std::string_view cmdline)>& wanted);

/// Who runs as which service of this prefix, from one look at all processes.
class RunningServices
{
  public:
    explicit RunningServices(const Layout& layout);
    /// The oldest when there are several: a forked child that has not executed its program yet looks like its parent.
    std::optional<process::Identity> find(std::string_view service) const;

  private:
    Layout layout_;
    std::vector<Running> running_;
};

/// Resident bytes of a process; 0 when it is gone.
std::uint64_t resident_bytes(pid_t pid);

} // namespace dstack::up
