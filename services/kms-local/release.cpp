#include "services/kms-local/release.hpp"
#include "shared/crypto/curve25519.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/crypto/kms_keys.hpp"
#include "shared/crypto/x509.hpp"
#include <nlohmann/json.hpp>

namespace dstack::kms
{

namespace
{

constexpr std::size_t quoted_body = 512;

Error invalid(std::string message) { return {Errc::invalid_argument, std::move(message), {}, {}}; }

std::string quoted(std::string_view body) { return std::string{body.substr(0, quoted_body)}; }

Error undecodable(std::string_view url, int status, std::string_view body)
{
    return {Errc::unavailable,
            "failed to decode response from " + std::string{url} + ", status=" + std::to_string(status) +
                ", body=" + quoted(body),
            {},
            {}};
}

Result<nlohmann::json> reply_object(std::string_view url, int status, std::string_view body)
{
    if (status < 200 || status > 299)
    {
        return Error{Errc::unavailable,
                     "auth api " + std::string{url} + " returned " + std::to_string(status) + ": " + quoted(body),
                     {},
                     {}};
    }
    auto json = nlohmann::json::parse(body, nullptr, false);
    if (!json.is_object()) { return undecodable(url, status, body); }
    return json;
}

template <class T>
bool take(const nlohmann::json& json, const char* key, T& out)
{
    const auto found = json.find(key);
    const auto* const value = found != json.end() ? found->get_ptr<const T*>() : nullptr;
    if (value == nullptr) { return false; }
    out = *value;
    return true;
}

} // namespace

Result<AuthReply> parse_auth_reply(std::string_view url, int status, std::string_view body)
{
    const auto json = reply_object(url, status, body);
    if (!json) { return json.error(); }
    AuthReply out;
    const bool complete = take(*json, "isAllowed", out.is_allowed) && take(*json, "gatewayAppId", out.gateway_app_id) &&
                          take(*json, "reason", out.reason);
    if (!complete) { return undecodable(url, status, body); }
    return out;
}

Result<AuthInfo> parse_auth_info(std::string_view url, int status, std::string_view body)
{
    const auto json = reply_object(url, status, body);
    if (!json) { return json.error(); }
    AuthInfo out;
    std::string state;
    nlohmann::json::number_unsigned_t chain_id = 0;
    const bool complete = take(*json, "status", state) && take(*json, "kmsContractAddr", out.kms_contract_address) &&
                          take(*json, "gatewayAppId", out.gateway_app_id) && take(*json, "chainId", chain_id) &&
                          take(*json, "appImplementation", out.app_implementation);
    if (!complete) { return undecodable(url, status, body); }
    out.chain_id = chain_id;
    return out;
}

std::string boot_auth_url(std::string_view url)
{
    std::string out{url};
    if (!out.ends_with('/')) { out += '/'; }
    return out + "bootAuth/app";
}

Result<attestation::Bytes32> parse_host_key(std::string_view text)
{
    while (text.ends_with('\n')) { text.remove_suffix(1); }
    return crypto::from_hex_fixed<32>(text);
}

Result<Done> check_image(const attestation::Claims& claims, std::string_view vm_config)
{
    const auto wanted = image_hash_of(vm_config);
    if (!wanted) { return wanted.error(); }
    if (!wanted->empty() && *wanted != claims.os_image_hash)
    {
        return invalid("vm_config names image " + *wanted + ", the VM was started from " + claims.os_image_hash);
    }
    return Done{};
}

Result<AppKeys> release(const RootKeys& root, const attestation::BootInfo& boot, std::string gateway_app_id)
{
    const auto app_id = crypto::from_hex(boot.app_id, 20);
    if (!app_id) { return Error{app_id.error()}.within("app id"); }
    const auto instance_id = crypto::from_hex(boot.instance_id);
    if (!instance_id) { return Error{instance_id.error()}.within("instance id"); }
    const auto disk = crypto::app_disk_key(root.ca_key, *app_id, *instance_id);
    const auto env = crypto::app_env_key(root.ca_key, *app_id);
    const auto k256 = crypto::app_k256_key(root.k256_key, *app_id);
    if (!disk || !env || !k256) { return Error{Errc::internal, "key derivation failed", {}, {}}; }
    const auto k256_public = crypto::k256_public(*k256);
    if (!k256_public) { return k256_public.error(); }
    const auto signature = crypto::sign_for_app(root.k256_key, crypto::kms_issued_domain, *app_id, {}, *k256_public);
    if (!signature) { return signature.error(); }
    return AppKeys{root.ca_cert_pem,           crypto::to_hex(*disk),     crypto::to_hex(*env), crypto::to_hex(*k256),
                   crypto::to_hex(*signature), std::move(gateway_app_id), boot.os_image_hash};
}

Result<EnvPublicKey> env_public_key(const RootKeys& root, crypto::View app_id, std::uint64_t unix_time)
{
    if (app_id.size() != 20) { return invalid("app_id must be 20 bytes"); }
    const auto secret = crypto::app_env_key(root.ca_key, app_id);
    if (!secret) { return secret.error(); }
    const auto key = crypto::x25519_public(*secret);
    const auto legacy = crypto::sign_for_app(root.k256_key, crypto::env_pubkey_domain, app_id, {}, key);
    const auto dated = crypto::sign_for_app(root.k256_key, crypto::env_pubkey_domain, app_id, unix_time, key);
    if (!legacy || !dated) { return Error{Errc::internal, "signing failed", {}, {}}; }
    return EnvPublicKey{crypto::to_hex(key), crypto::to_hex(*legacy), unix_time, crypto::to_hex(*dated)};
}

Result<RpcIdentity> make_rpc_identity(const RootKeys& root, const std::vector<std::string>& dns_names,
                                      const std::vector<std::string>& ip_addresses)
{
    const auto key = crypto::P256Key::generate();
    crypto::CertSpec spec{.common_name = dns_names.empty() ? "localhost" : dns_names.front()};
    spec.dns_names = dns_names;
    spec.ip_addresses = ip_addresses;
    spec.extensions.push_back({std::string{crypto::oid::cert_usage}, crypto::copy(crypto::view("kms:rpc"))});
    auto leaf = crypto::issue_cert(spec, key.spki_der(), root.ca_cert_pem, root.ca_key);
    if (!leaf) { return std::move(leaf).error().within("RPC certificate"); }
    return RpcIdentity{*leaf + root.ca_cert_pem, key.pkcs8_pem()};
}

} // namespace dstack::kms
