#include "shared/crypto/curve25519.hpp"
#include "shared/crypto/openssl.hpp"
#include <cstdlib>

namespace dstack::crypto
{

namespace
{

Pkey private_key(int type, const Bytes32& secret)
{
    Pkey key{EVP_PKEY_new_raw_private_key(type, nullptr, secret.data(), secret.size())};
    if (!key) { std::abort(); } // any 32 bytes are accepted
    return key;
}

Bytes32 public_half(const Pkey& key)
{
    Bytes32 out;
    std::size_t size = out.size();
    if (EVP_PKEY_get_raw_public_key(key.get(), out.data(), &size) != 1) { std::abort(); }
    return out;
}

using DigestContext = Owned<EVP_MD_CTX, EVP_MD_CTX_free>;

} // namespace

Bytes32 x25519_public(const Bytes32& secret) { return public_half(private_key(EVP_PKEY_X25519, secret)); }

Result<Bytes32> x25519_shared(const Bytes32& secret, const Bytes32& peer_public)
{
    const auto mine = private_key(EVP_PKEY_X25519, secret);
    const Pkey peer{EVP_PKEY_new_raw_public_key(EVP_PKEY_X25519, nullptr, peer_public.data(), peer_public.size())};
    const PkeyContext context{EVP_PKEY_CTX_new(mine.get(), nullptr)};
    if (!peer || !context) { return openssl_error("x25519"); }
    Bytes32 out;
    std::size_t size = out.size();
    const bool ok = EVP_PKEY_derive_init(context.get()) == 1 &&
                    EVP_PKEY_derive_set_peer(context.get(), peer.get()) == 1 &&
                    EVP_PKEY_derive(context.get(), out.data(), &size) == 1 && size == out.size();
    if (!ok || constant_time_equal(out, Bytes32{})) { return openssl_error("x25519: peer key of small order"); }
    return out;
}

Bytes32 ed25519_public(const Bytes32& seed) { return public_half(private_key(EVP_PKEY_ED25519, seed)); }

Bytes64 ed25519_sign(const Bytes32& seed, View message)
{
    const auto key = private_key(EVP_PKEY_ED25519, seed);
    const DigestContext context{EVP_MD_CTX_new()};
    Bytes64 out;
    std::size_t size = out.size();
    if (!context || EVP_DigestSignInit(context.get(), nullptr, nullptr, nullptr, key.get()) != 1 ||
        EVP_DigestSign(context.get(), out.data(), &size, message.data(), message.size()) != 1)
    {
        std::abort();
    }
    return out;
}

bool ed25519_verify(const Bytes32& public_key, View message, const Bytes64& signature)
{
    const Pkey key{EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, public_key.data(), public_key.size())};
    const DigestContext context{EVP_MD_CTX_new()};
    if (!key || !context || EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, key.get()) != 1)
    {
        return false;
    }
    return EVP_DigestVerify(context.get(), signature.data(), signature.size(), message.data(), message.size()) == 1;
}

} // namespace dstack::crypto
