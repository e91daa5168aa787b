#pragma once
#include "services/allocator/plan.hpp"
#include "services/allocator/socket_table.hpp"
#include <map>

namespace dstack::allocator
{

/// The kernel of this host, for the time of one decision. Blocks (reads /proc, binds sockets): not for the loop's
/// thread.
class Kernel : public HostFacts
{
  public:
    Kernel();
    Result<std::optional<std::string>> holder(const Resource& resource) override;
    bool is_ephemeral(std::uint16_t port) override { return port >= outgoing_.first && port <= outgoing_.second; }

  private:
    Result<std::optional<std::string>> port_holder(const Resource& resource);
    std::optional<std::string> cid_holder(std::uint32_t cid);
    /// Who has the socket that is in the way, as far as /proc shows; nullopt: /proc/net shows no such socket.
    std::optional<std::string> socket_owner(const Resource& resource);

    std::pair<std::uint16_t, std::uint16_t> outgoing_;
    std::optional<std::map<std::uint32_t, std::string>> guest_cids_; ///< of QEMU processes; read once
};

} // namespace dstack::allocator
