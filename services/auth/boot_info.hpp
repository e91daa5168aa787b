#pragma once
#include "shared/base/result.hpp"
#include <string>
#include <string_view>
#include <vector>

namespace dstack::auth
{

/// Which of the two questions the KMS asks: POST /bootAuth/app or /bootAuth/kms.
enum class Kind
{
    app,
    kms
};
std::string_view to_string(Kind kind);

/// What wants to boot, as the KMS measured it (dstack-protocol.md, E.4). Hex is lower case without 0x and has its full
/// length; what may be empty says so.
struct BootInfo
{
    std::string tee_variant;       ///< empty from an old KMS
    std::string mr_aggregated;     ///< 64
    std::string os_image_hash;     ///< 64 or empty
    std::string mr_system;         ///< 64 or empty
    std::string app_id;            ///< 40
    std::string compose_hash;      ///< 64
    std::string instance_id;       ///< 40 or empty
    std::string device_id;         ///< 64, or 128 on SEV-SNP
    std::string key_provider_info; ///< hex of any length
    std::string tcb_status;        ///< empty when missing: no status is an allowed one
    std::vector<std::string> advisory_ids;
};

/// Strict: one JSON object, no known key twice, every value of its type and length. Keys that nobody knows are ignored.
/// The message of an error is short ASCII: "composeHash: must be 64 hex digits, has 62"; `out` is undefined then.
Result<Done> read_boot_info(std::string_view body, BootInfo& out);

/// The same as an object.
class BootInfoReader
{
  public:
    Result<BootInfo> read(std::string_view body);
};

} // namespace dstack::auth
