#pragma once
#include "services/allocator/look.hpp"

namespace dstack::allocator
{

/// A lease as the watch needs it.
struct Watched
{
    std::string id;
    Resource resource;
    std::string owner;
    bool bound = false;
    bool by_service = true; ///< an operator's own leases are for what the allocator cannot know
    std::uint64_t since_ms = 0;
};

enum class Trouble
{
    conflict,
    drift
};

struct Finding
{
    Trouble trouble = Trouble::conflict;
    std::string lease; ///< id
    Process process{};
    std::string reason{};
    std::string key() const; ///< the same trouble has the same
};

/// Leases against what the host uses. A process is the owner's VM when it forwards one of the owner's ports or has one of its
/// CIDs, and has no CID of somebody else's.
std::vector<Finding> compare(const std::vector<Watched>& leases, const std::vector<Use>& uses, std::uint64_t now_ms);

/// The owner's VM or, where an operator took the lease, whoever uses it; pid 0: none.
Process process_of(const std::string& owner, const std::vector<Watched>& leases, const std::vector<Use>& uses);

/// "8080", "tcp:127.0.0.1:8080", "cid:1003", "vsock:10000". A port without an address is asked for at 0.0.0.0 and at [::],
/// one without a protocol for tcp and udp.
Result<std::vector<Resource>> parse_question(std::string_view text);

} // namespace dstack::allocator
