#pragma once
#include "services/allocator/look.hpp"

namespace dstack::allocator
{

/// The kernel of this host, for one decision after the other. Blocks (reads /proc, binds sockets): not for the loop's
/// thread.
class Kernel : public HostFacts
{
  public:
    /// `privileged_ports`: ports below ip_unprivileged_port_start need no flag.
    explicit Kernel(bool privileged_ports = false);
    /// A new decision: what was seen before is old.
    void begin() { guests_.reset(); }
    Result<std::optional<std::string>> holder(const Resource& resource) override;
    bool is_ephemeral(std::uint16_t port) override { return port >= outgoing_.first && port <= outgoing_.second; }
    bool is_set_aside(std::uint16_t port) override;
    bool is_privileged(std::uint16_t port) override { return port < unprivileged_from_; }

  private:
    Result<std::optional<std::string>> port_holder(const Resource& resource);
    std::optional<std::string> guest_holder(const Resource& resource);
    std::optional<std::string> vsock_holder(const Resource& resource);
    /// Who has the socket that is in the way, as far as the kernel shows; nullopt: it shows no such socket.
    std::optional<std::string> socket_owner(const Resource& resource);

    Looker looker_;
    std::pair<std::uint16_t, std::uint16_t> outgoing_;
    std::vector<std::pair<std::uint16_t, std::uint16_t>> set_aside_; ///< ip_local_reserved_ports
    std::uint32_t unprivileged_from_ = 0;
    std::optional<std::vector<Use>> guests_; ///< of this decision
};

} // namespace dstack::allocator
