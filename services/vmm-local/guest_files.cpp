#include "services/vmm-local/guest_files.hpp"
#include <nlohmann/json.hpp>

namespace dstack::vmm
{

namespace
{
using nlohmann::ordered_json;
std::string dump(const ordered_json& value) { return value.dump(-1, ' ', false, ordered_json::error_handler_t::replace); }
} // namespace

std::string vm_config(const Manifest& manifest, const Image& image, std::string_view qemu_version)
{
    ordered_json out;
    out["os_image_hash"] = image.os_image_hash;
    out["cpu_count"] = manifest.vcpu == 0 ? 1 : manifest.vcpu;
    out["memory_size"] = std::uint64_t{manifest.memory} * 1024 * 1024;
    if (!qemu_version.empty()) { out["qemu_version"] = qemu_version; }
    out["pci_hole64_size"] = 0;
    out["hugepages"] = manifest.hugepages;
    out["num_gpus"] = 0;
    out["num_nvswitches"] = 0;
    out["hotplug_off"] = false;
    out["image"] = image.name;
    out["host_share_mode"] = "vhd";
    out["spec_version"] = 1;
    return dump(out);
}

std::string sys_config(const Manifest& manifest, const NodeUrls& node, std::string_view host_api_url, std::string_view vm_config)
{
    ordered_json out;
    out["kms_urls"] = manifest.kms_urls.empty() ? node.kms_urls : manifest.kms_urls;
    out["gateway_urls"] = manifest.gateway_urls.empty() ? node.gateway_urls : manifest.gateway_urls;
    out["pccs_url"] = node.pccs_url;
    out["collateral_urls"] = {{"pccs", node.pccs_url}};
    out["nvidia_attestation_proxy_url"] = nullptr;
    out["docker_registry"] = node.docker_registry;
    out["host_api_url"] = host_api_url;
    out["vm_config"] = vm_config;
    return dump(out);
}

std::string first_instance_info(const Manifest& manifest)
{
    if (manifest.app_id.empty()) { return {}; }
    ordered_json out;
    out["app_id"] = manifest.app_id;
    return dump(out);
}

} // namespace dstack::vmm
