#pragma once
#include "services/vmm-local/manifest.hpp"
#include "services/vmm-local/messages.hpp"

namespace dstack::vmm
{

struct PortRange
{
    std::string protocol; ///< tcp or udp
    std::uint16_t from = 1;
    std::uint16_t to = 65535; ///< inclusive
};
/// "tcp:1-20000".
Result<PortRange> parse_port_range(std::string_view text);

/// What CreateVm is checked against.
struct HostFacts
{
    bool port_mapping = true;
    std::string port_address = "127.0.0.1"; ///< for mappings that name none
    std::vector<PortRange> port_ranges;
    bool tee_simulator = true;
    std::vector<const Manifest*> others; ///< every other VM, stopped ones too
};

/// A permitted name (B.3, rule 1).
bool valid_name(std::string_view name);

/// All checks of B.3 in upstream's order, with its texts; gives the VM's definition without id and time.
Result<Manifest> plan_vm(const VmConfiguration& request, const HostFacts& host);

/// GetComposeHash and loading: the document parses as an AppCompose (B.5): "missing field `runner`".
Result<Done> check_app_compose(std::string_view compose);
/// SHA-256 of the exact bytes, hex.
std::string compose_hash(std::string_view compose);
/// The first 40 hex of the compose hash, or what the request says (B.2).
std::string app_id_of(const VmConfiguration& request);

} // namespace dstack::vmm
