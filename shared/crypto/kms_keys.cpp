#include "shared/crypto/kms_keys.hpp"
#include "shared/crypto/hash.hpp"

namespace dstack::crypto
{

namespace
{

Bytes32 app_digest(std::string_view domain, View app_id, std::optional<std::uint64_t> timestamp, View message)
{
    auto input = copy(view(domain));
    input.push_back(':');
    append(input, app_id);
    if (timestamp)
    {
        for (int shift = 56; shift >= 0; shift -= 8)
        {
            input.push_back(static_cast<std::uint8_t>(*timestamp >> shift));
        }
    }
    append(input, message);
    return keccak256(input);
}

} // namespace

Result<P256Key> derive_p256(const P256Key& root, Context context)
{
    auto scalar = derive(root.scalar(), context);
    auto key = P256Key::from_scalar(scalar);
    wipe(scalar);
    return key;
}

Result<Bytes32> derive_dh_secret(const P256Key& root, Context context)
{
    const auto child = derive_p256(root, context);
    if (!child) { return child.error(); }
    auto der = child->pkcs8_der();
    const auto secret = sha256(der);
    wipe(der);
    return secret;
}

Result<Bytes32> app_disk_key(const P256Key& root, View app_id, View instance_id)
{
    return derive_dh_secret(root, {app_id, instance_id, view("app-disk-crypt-key")});
}

Result<Bytes32> app_env_key(const P256Key& root, View app_id)
{
    return derive_dh_secret(root, {app_id, view("env-encrypt-key")});
}

Result<P256Key> app_ca_key(const P256Key& root, View app_id) { return derive_p256(root, {app_id, view("app-ca")}); }

Result<Bytes32> app_k256_key(const Bytes32& root_k256, View app_id)
{
    auto secret = derive(root_k256, {app_id, view("app-key")});
    const auto usable = k256_public(secret);
    if (!usable) { return usable.error(); }
    return secret;
}

Result<K256Signature> sign_for_app(const Bytes32& root_k256, std::string_view domain, View app_id,
                                   std::optional<std::uint64_t> timestamp, View message)
{
    return k256_sign(root_k256, app_digest(domain, app_id, timestamp, message));
}

Result<K256Public> recover_for_app(std::string_view domain, View app_id, std::optional<std::uint64_t> timestamp,
                                   View message, const K256Signature& signature)
{
    return k256_recover(app_digest(domain, app_id, timestamp, message), signature);
}

} // namespace dstack::crypto
