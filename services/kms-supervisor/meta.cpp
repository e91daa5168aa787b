#include "services/kms-supervisor/meta.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/crypto/x509.hpp"
#include <nlohmann/json.hpp>

namespace dstack::kms_supervisor
{

namespace
{

constexpr std::size_t quoted_body = 200;

Probe answered(std::string reason) { return {Probe::Kind::answered, {}, std::move(reason)}; }

const std::string* text_of(const nlohmann::json& json, const char* key)
{
    const auto found = json.find(key);
    return found != json.end() ? found->get_ptr<const std::string*>() : nullptr;
}

} // namespace

Probe judge(int status, std::string_view body, crypto::View leaf_der, std::int64_t unix_time)
{
    const auto json = nlohmann::json::parse(body, nullptr, false);
    if (status != 200)
    {
        const auto* const error = json.is_object() ? text_of(json, "error") : nullptr;
        const std::string said = error != nullptr ? *error : std::string{body.substr(0, quoted_body)};
        return answered("GetMeta: status " + std::to_string(status) + ": " + said);
    }
    if (!json.is_object()) { return answered("GetMeta: not a JSON object"); }
    const auto* const ca_pem = text_of(json, "ca_cert");
    const auto* const k256 = text_of(json, "k256_pubkey");
    if (ca_pem == nullptr || k256 == nullptr) { return answered("GetMeta: no ca_cert or no k256_pubkey"); }
    const auto ca = crypto::parse_cert_pem(*ca_pem);
    if (!ca) { return answered("GetMeta: ca_cert: " + ca.error().message); }
    if (!ca->is_ca) { return answered("GetMeta: ca_cert is not a CA"); }
    const auto key = crypto::from_hex(*k256, 33);
    if (!key) { return answered("GetMeta: k256_pubkey: " + key.error().message); }
    const auto leaf = crypto::parse_cert_der(leaf_der);
    if (!leaf) { return answered("TLS: " + leaf.error().message); }
    const auto issued = crypto::verify_cert(*leaf, *ca, unix_time);
    if (!issued) { return answered("TLS: " + issued.error().message); }
    return {Probe::Kind::ready, {crypto::to_hex(ca->fingerprint), crypto::to_hex(*key)}, {}};
}

std::string encode(const Identity& identity)
{
    const nlohmann::ordered_json json = {{"ca_fingerprint", identity.ca_fingerprint},
                                         {"k256_pubkey", identity.k256_pubkey}};
    return json.dump(2) + "\n";
}

Result<Identity> decode_identity(std::string_view text)
{
    const auto json = nlohmann::json::parse(text, nullptr, false);
    const auto* const ca = json.is_object() ? text_of(json, "ca_fingerprint") : nullptr;
    const auto* const key = json.is_object() ? text_of(json, "k256_pubkey") : nullptr;
    const bool good = ca != nullptr && key != nullptr && crypto::from_hex(*ca, 32) && crypto::from_hex(*key, 33);
    if (!good)
    {
        return Error{Errc::data_loss,
                     "damaged pin of the KMS's identity",
                     "restore it from a backup, or compare and remove it",
                     {}};
    }
    return Identity{*ca, *key};
}

} // namespace dstack::kms_supervisor
