#pragma once
#include "services/deployer/model.hpp"
#include "shared/base/result.hpp"
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::deployer
{

/// What of CreateVm is this host's choice, from the configuration.
struct VmDefaults
{
    bool no_tee = false;
    std::string simulated_tee{}; ///< empty: none; see B.3 (7)
    std::vector<std::string> kms_urls{};
};

/// `Error::details` of a call that never left this host: nothing was done.
inline constexpr std::string_view not_sent = R"({"sent":false})";

/// Body of CreateVm (B.1, VmConfiguration). `cid` is an extension: upstream ignores unknown fields.
std::string create_vm_body(const AppFacts& app, const VmDefaults& defaults);
/// {"id":"..."}
std::string id_body(std::string_view vm_id);

Result<std::string> parse_id(std::string_view json);
Result<std::vector<ImageInfo>> parse_images(std::string_view json);
/// StatusResponse, brief or not.
Result<std::vector<VmSight>> parse_vms(std::string_view json);
/// GetInfoResponse; nothing when there is no such VM.
Result<std::optional<VmSight>> parse_info(std::string_view json);

/// An answer that is not 200, with the VMM's own words: "vmm CreateVm: Port mapping is not allowed for tcp:8080".
Error vmm_error(std::string_view method, int status, std::string_view body);

/// The highest version; of equal ones the last name. Upstream's versions have dots ("0.5.6"); what does not parse is lowest.
const ImageInfo* newest_image(const std::vector<ImageInfo>& images);

} // namespace dstack::deployer
