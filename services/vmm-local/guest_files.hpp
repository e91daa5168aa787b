#pragma once
#include "services/vmm-local/image.hpp"
#include "services/vmm-local/manifest.hpp"
#include <string>
#include <vector>

namespace dstack::vmm
{

/// What a node's configuration adds to every guest's `.sys-config.json`.
struct NodeUrls
{
    std::vector<std::string> kms_urls;
    std::vector<std::string> gateway_urls;
    std::string pccs_url;
    std::string docker_registry;
};

/// The `vm_config` document (B.13) as text.
std::string vm_config(const Manifest& manifest, const Image& image, std::string_view qemu_version);
/// `.sys-config.json` (B.13), compact.
std::string sys_config(const Manifest& manifest, const NodeUrls& node, std::string_view host_api_url, std::string_view vm_config);
/// `.instance_info` after creation; empty when the app id is.
std::string first_instance_info(const Manifest& manifest);

} // namespace dstack::vmm
