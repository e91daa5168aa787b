#pragma once
#include "shared/base/result.hpp"
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::vmm
{

// The prpc messages that this VMM takes (dstack-protocol.md A.3, B.1). Names and types are upstream's.

struct PortMapping
{
    std::string protocol;
    std::uint32_t host_port = 0;
    std::uint32_t vm_port = 0;
    std::string host_address;
};

struct Networking
{
    std::string mode;
    std::string bridge_name;
};

struct GpuConfig
{
    std::vector<std::string> slots;
    std::string attach_mode;
};

struct VmConfiguration
{
    std::string trace; ///< not of the message: W3C trace context of the request, or empty
    std::string name;
    std::string image;
    std::string compose_file;
    std::uint32_t vcpu = 0;
    std::uint32_t memory = 0;    ///< MiB
    std::uint32_t disk_size = 0; ///< GiB; 0: no data disk
    std::vector<PortMapping> ports;
    std::string encrypted_env; ///< raw bytes
    std::optional<std::string> app_id;
    std::string user_config;
    bool hugepages = false;
    bool pin_numa = false;
    std::optional<GpuConfig> gpus;
    std::vector<std::string> kms_urls;
    std::vector<std::string> gateway_urls;
    bool stopped = false;
    bool no_tee = false;
    std::optional<Networking> networking;
    std::vector<Networking> networks;
    std::optional<std::string> simulated_tee;
    // Ours; upstream ignores them.
    std::optional<std::string> vm_id; ///< the caller's choice of id: the same request again gives the same VM
    std::uint32_t cid = 0;            ///< leased vsock CID; 0: none
};

struct StatusRequest
{
    std::vector<std::string> ids;
    bool brief = false;
    std::string keyword;
    std::uint32_t page = 0;
    std::uint32_t page_size = 0;
};

struct IdRequest
{
    std::string id;
};

struct NotifyRequest
{
    std::string event;
    std::string payload;
};

/// serde's rules: unknown fields are ignored, missing ones are default, null only where a field is optional, integers in
/// range and not fractional, bytes as hex. `text` empty gives the default message.
Result<VmConfiguration> decode_vm_configuration(std::string_view text);
Result<StatusRequest> decode_status(std::string_view text);
Result<IdRequest> decode_id(std::string_view text);
Result<NotifyRequest> decode_notify(std::string_view text);

/// A GET's query as the JSON text of the same request: "id=a&page=2&ids[]=x". Numbers and booleans stay texts and are
/// understood by the decoders.
std::string query_to_json(std::string_view query);

} // namespace dstack::vmm
