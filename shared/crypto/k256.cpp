#include "shared/crypto/k256.hpp"
#include <algorithm>
#include <secp256k1.h>
#include <secp256k1_recovery.h>

namespace dstack::crypto
{

namespace
{

Error invalid(std::string_view what) { return {Errc::invalid_argument, std::string{what}, {}, {}}; }

/// Immutable after creation and safe from any thread.
const secp256k1_context* context()
{
    static secp256k1_context* const shared = []
    {
        auto* made = secp256k1_context_create(SECP256K1_CONTEXT_NONE);
        auto seed = random_fixed<32>();
        if (secp256k1_context_randomize(made, seed.data()) != 1) { std::abort(); } // blinding against side channels
        return made;
    }();
    return shared;
}

K256Public compressed(const secp256k1_pubkey& key)
{
    K256Public out;
    std::size_t size = out.size();
    secp256k1_ec_pubkey_serialize(context(), out.data(), &size, &key, SECP256K1_EC_COMPRESSED);
    return out;
}

} // namespace

Result<K256Public> k256_public(const Bytes32& secret)
{
    secp256k1_pubkey key;
    if (secp256k1_ec_pubkey_create(context(), &key, secret.data()) != 1)
    {
        return invalid("not a secp256k1 secret key");
    }
    return compressed(key);
}

Result<K256Signature> k256_sign(const Bytes32& secret, const Bytes32& digest)
{
    secp256k1_ecdsa_recoverable_signature signature;
    if (secp256k1_ecdsa_sign_recoverable(context(), &signature, digest.data(), secret.data(), nullptr, nullptr) != 1)
    {
        return invalid("not a secp256k1 secret key");
    }
    K256Signature out;
    int recovery = 0;
    secp256k1_ecdsa_recoverable_signature_serialize_compact(context(), out.data(), &recovery, &signature);
    out.back() = static_cast<std::uint8_t>(recovery);
    return out;
}

Result<K256Public> k256_recover(const Bytes32& digest, const K256Signature& signature)
{
    secp256k1_ecdsa_recoverable_signature parsed;
    secp256k1_pubkey key;
    if (signature.back() > 3 || secp256k1_ecdsa_recoverable_signature_parse_compact(
                                    context(), &parsed, signature.data(), signature.back()) != 1)
    {
        return invalid("malformed recoverable signature");
    }
    if (secp256k1_ecdsa_recover(context(), &key, &parsed, digest.data()) != 1)
    {
        return invalid("no key can have made this signature");
    }
    return compressed(key);
}

Bytes32 k256_generate()
{
    for (;;)
    {
        const auto secret = random_fixed<32>();
        if (secp256k1_ec_seckey_verify(context(), secret.data()) == 1) { return secret; }
    }
}

} // namespace dstack::crypto
