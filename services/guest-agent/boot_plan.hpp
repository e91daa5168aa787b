#pragma once
#include "shared/base/result.hpp"
#include "shared/crypto/bytes.hpp"
#include <optional>
#include <string>
#include <vector>

namespace dstack::guest
{

/// What the host put on the share, already bounded in size (dstack-protocol.md C.3). Hostile.
struct Share
{
    std::string app_compose;
    std::string sys_config;
    std::optional<std::string> instance_info{};
    std::optional<std::string> simulator{};     ///< .tee-simulator.json
    std::optional<std::string> encrypted_env{}; ///< raw bytes
};

enum class KeyProvider
{
    none,
    kms,
};

/// What this boot is about, decided before anything is started.
struct BootPlan
{
    std::string app_name{};
    std::string app_id{};        ///< 40 hex as a rule; what the host says otherwise
    std::string compose_hash{};  ///< 64 hex: SHA-256 of the exact bytes of app-compose.json
    std::string instance_id{};   ///< 40 hex; empty with no_instance_id
    std::string instance_seed{}; ///< 40 hex; empty when the host keeps it for itself
    std::string os_image_hash{}; ///< 64 hex or empty
    KeyProvider key_provider = KeyProvider::none;
    std::vector<std::string> kms_urls{};
    std::string host_api_url{}; ///< empty: there is no host to report to
    std::string vm_config{};    ///< the JSON text that the KMS gets
    std::string compose_file{}; ///< docker compose YAML
    std::string app_compose{};
    std::vector<std::string> allowed_envs{};
    bool simulated = false; ///< a simulator config vouches for this boot
    bool public_tcbinfo = true;
    std::vector<std::string> warnings{}; ///< what the app asked for and a development guest does not do
};

/// Fails closed: a compose file that differs from what the host's statement says, or a feature whose absence would
/// change what the app does, ends the boot. `fresh_seed` is used when the host gave none.
Result<BootPlan> plan_boot(const Share& share, const crypto::Bytes20& fresh_seed);

/// Where a boot that cannot even be planned is reported to; empty when the share does not say.
std::string host_api_of(const Share& share);

/// The measurement report for the console (C.4): tools look for `"compose_hash": "<hash>"`, with that space.
std::string console_report(const BootPlan& plan);

/// The body of an `instance.info` event: the host writes it to .instance_info as it is.
std::string instance_info_json(const BootPlan& plan);

/// The decrypted environment (D.4) as name and value, of the names in `allowed` only.
Result<std::vector<std::pair<std::string, std::string>>> read_env(std::string_view json,
                                                                  const std::vector<std::string>& allowed);

} // namespace dstack::guest
