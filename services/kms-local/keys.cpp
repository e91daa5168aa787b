#include "services/kms-local/keys.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/crypto/x509.hpp"
#include <algorithm>
#include <nlohmann/json.hpp>

namespace dstack::kms
{

namespace
{

constexpr std::string_view ca_key_file = "root-ca.key";
constexpr std::string_view ca_cert_file = "root-ca.crt";
constexpr std::string_view temp_key_file = "tmp-ca.key";
constexpr std::string_view temp_cert_file = "tmp-ca.crt";
constexpr std::string_view k256_file = "root-k256.key";

Error lost(std::string message) { return {Errc::data_loss, std::move(message), {}, {}}; }

Result<std::string> make_ca(std::string name, int path_length, const crypto::P256Key& key)
{
    crypto::CertSpec spec{.common_name = std::move(name), .organization = "Dstack"};
    spec.ca_path_length = path_length;
    return crypto::self_signed_cert(spec, key);
}

Result<crypto::P256Key> read_pair(const KeyFiles& files, std::string_view key_file, std::string_view cert_file)
{
    auto key = crypto::P256Key::from_pem(files.find(std::string{key_file})->second);
    if (!key) { return std::move(key).error().within(key_file); }
    const auto cert = crypto::parse_cert_pem(files.find(std::string{cert_file})->second);
    if (!cert) { return Error{cert.error()}.within(cert_file); }
    if (!crypto::matches(*cert, *key))
    {
        return lost(std::string{cert_file} + " and " + std::string{key_file} + " do not belong together");
    }
    return key;
}

} // namespace

Result<RootKeys> generate_root_keys()
{
    const auto ca_key = crypto::P256Key::generate();
    const auto temp_key = crypto::P256Key::generate();
    auto ca = make_ca("Dstack KMS CA", 1, ca_key);
    if (!ca) { return std::move(ca).error(); }
    auto temp = make_ca("Dstack Client Temp CA", 0, temp_key);
    if (!temp) { return std::move(temp).error(); }
    return RootKeys{ca_key, std::move(*ca), temp_key, std::move(*temp), crypto::k256_generate()};
}

Result<Identity> identity_of(const RootKeys& keys)
{
    const auto cert = crypto::parse_cert_pem(keys.ca_cert_pem);
    if (!cert) { return cert.error(); }
    const auto k256 = crypto::k256_public(keys.k256_key);
    if (!k256) { return k256.error(); }
    return Identity{crypto::to_hex(cert->fingerprint), crypto::to_hex(*k256)};
}

KeyFiles encode(const RootKeys& keys)
{
    return {{std::string{ca_key_file}, keys.ca_key.pkcs8_pem()},
            {std::string{ca_cert_file}, keys.ca_cert_pem},
            {std::string{temp_key_file}, keys.temp_ca_key.pkcs8_pem()},
            {std::string{temp_cert_file}, keys.temp_ca_cert_pem},
            {std::string{k256_file}, crypto::text(keys.k256_key)}};
}

const std::vector<std::string>& key_file_names()
{
    static const std::vector<std::string> names{std::string{ca_key_file}, std::string{ca_cert_file},
                                                std::string{temp_key_file}, std::string{temp_cert_file},
                                                std::string{k256_file}};
    return names;
}

Result<RootKeys> decode(const KeyFiles& files)
{
    for (const auto& name : key_file_names())
    {
        if (!files.contains(name)) { return lost(name + " is missing"); }
    }
    auto ca_key = read_pair(files, ca_key_file, ca_cert_file);
    if (!ca_key) { return std::move(ca_key).error(); }
    auto temp_key = read_pair(files, temp_key_file, temp_cert_file);
    if (!temp_key) { return std::move(temp_key).error(); }
    const auto& raw = files.find(std::string{k256_file})->second;
    RootKeys out{*ca_key,
                 files.find(std::string{ca_cert_file})->second,
                 *temp_key,
                 files.find(std::string{temp_cert_file})->second,
                 {}};
    if (raw.size() != out.k256_key.size())
    {
        return lost(std::string{k256_file} + " has " + std::to_string(raw.size()) + " bytes instead of 32");
    }
    std::copy(raw.begin(), raw.end(), out.k256_key.begin());
    if (auto usable = crypto::k256_public(out.k256_key); !usable)
    {
        return std::move(usable).error().within(k256_file);
    }
    return out;
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
    Identity out;
    for (auto [key, field, size] : {std::tuple{"ca_fingerprint", &out.ca_fingerprint, std::size_t{32}},
                                    std::tuple{"k256_pubkey", &out.k256_pubkey, std::size_t{33}}})
    {
        const auto found = json.is_object() ? json.find(key) : json.end();
        const auto* const value =
            json.is_object() && found != json.end() ? found->get_ptr<const std::string*>() : nullptr;
        if (value == nullptr) { return lost("recorded identity: no " + std::string{key}); }
        const auto bytes = crypto::from_hex(*value, size);
        if (!bytes) { return Error{bytes.error()}.within("recorded identity: " + std::string{key}); }
        *field = crypto::to_hex(*bytes);
    }
    return out;
}

Step decide(Found found)
{
    if (found.keys_dir) { return Step::load; }
    return found.identity ? Step::refuse : Step::bootstrap;
}

} // namespace dstack::kms
