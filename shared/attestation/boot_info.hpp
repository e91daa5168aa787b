#pragma once
#include "shared/base/result.hpp"
#include <string>
#include <string_view>
#include <vector>

namespace dstack::attestation
{

/// What the KMS asks the authorization webhook about (dstack-protocol.md E.4). All hex lower case without 0x.
struct BootInfo
{
    std::string tee_variant;       ///< "dstack-tdx", ...
    std::string mr_aggregated;     ///< 64 hex
    std::string os_image_hash;     ///< 64 hex or empty
    std::string mr_system;         ///< 64 hex
    std::string app_id;            ///< 40 hex
    std::string compose_hash;      ///< 64 hex
    std::string instance_id;       ///< 40 hex or empty
    std::string device_id;         ///< 64 hex (128 on SNP)
    std::string key_provider_info; ///< hex of JSON or empty
    std::string tcb_status;        ///< "UpToDate", ...
    std::vector<std::string> advisory_ids;

    bool operator==(const BootInfo&) const = default;
};

/// Compact, with the keys and their order as upstream's KMS sends them.
std::string to_json(const BootInfo& info);
/// Any order, unknown keys ignored; what an old KMS leaves out (teeVariant, mrSystem, tcbStatus, advisoryIds) is empty.
/// A wrong type, a value that is no hex of its size, and a missing key are errors.
Result<BootInfo> boot_info_from_json(std::string_view json);

} // namespace dstack::attestation
