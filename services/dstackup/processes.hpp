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

/// The one that runs as `service` of this prefix; the oldest when there are several.
std::optional<process::Identity> find_service(const Layout& layout, std::string_view service);

/// Resident bytes of a process; 0 when it is gone.
std::uint64_t resident_bytes(pid_t pid);

} // namespace dstack::up
