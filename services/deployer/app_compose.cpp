#include "services/deployer/app_compose.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include <nlohmann/json.hpp>

namespace dstack::deployer
{

AppDocument build_app_document(std::string_view name, std::string_view compose, bool kms)
{
    // What upstream's CLI writes (I.1), with every default that matters spelt out.
    nlohmann::ordered_json document;
    document["manifest_version"] = 2;
    document["name"] = name;
    document["runner"] = "docker-compose";
    document["docker_compose_file"] = compose;
    document["kms_enabled"] = kms;
    document["gateway_enabled"] = false;
    document["local_key_provider_enabled"] = false;
    document["public_logs"] = true;
    document["public_sysinfo"] = true;
    document["public_tcbinfo"] = true;
    document["allowed_envs"] = nlohmann::ordered_json::array();
    document["no_instance_id"] = false;
    document["secure_time"] = false;
    AppDocument out;
    out.text = document.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
    out.compose_hash = crypto::to_hex(crypto::sha256(out.text));
    out.app_id = out.compose_hash.substr(0, 40);
    return out;
}

} // namespace dstack::deployer
