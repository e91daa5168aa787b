#include "shared/crypto/aead.hpp"
#include "shared/crypto/curve25519.hpp"
#include "shared/crypto/openssl.hpp"
#include <algorithm>
#include <cstdlib>

namespace dstack::crypto
{

namespace
{

constexpr std::size_t tag_size = 16;
using CipherContext = Owned<EVP_CIPHER_CTX, EVP_CIPHER_CTX_free>;

Error not_authentic() { return {Errc::invalid_argument, "decryption failed: wrong key or changed data", {}, {}}; }

} // namespace

Bytes aes256_gcm_seal(const Bytes32& key, const Nonce& nonce, View plaintext, View associated)
{
    const CipherContext context{EVP_CIPHER_CTX_new()};
    Bytes out(plaintext.size() + tag_size);
    int size = 0;
    bool ok = context && EVP_EncryptInit_ex(context.get(), EVP_aes_256_gcm(), nullptr, key.data(), nonce.data()) == 1;
    if (ok && !associated.empty())
    {
        ok = EVP_EncryptUpdate(context.get(), nullptr, &size, associated.data(), static_cast<int>(associated.size())) ==
             1;
    }
    if (ok && !plaintext.empty())
    {
        ok = EVP_EncryptUpdate(context.get(), out.data(), &size, plaintext.data(),
                               static_cast<int>(plaintext.size())) == 1;
    }
    auto* const tag = out.data() + plaintext.size();
    ok = ok && EVP_EncryptFinal_ex(context.get(), tag, &size) == 1 &&
         EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_GCM_GET_TAG, static_cast<int>(tag_size), tag) == 1;
    if (!ok) { std::abort(); } // nothing in the input can make it fail
    return out;
}

Result<Bytes> aes256_gcm_open(const Bytes32& key, const Nonce& nonce, View sealed, View associated)
{
    if (sealed.size() < tag_size) { return not_authentic(); }
    const CipherContext context{EVP_CIPHER_CTX_new()};
    const auto ciphertext = sealed.first(sealed.size() - tag_size);
    auto tag = copy(sealed.last(tag_size));
    Bytes out(ciphertext.size());
    int size = 0;
    bool ok = context && EVP_DecryptInit_ex(context.get(), EVP_aes_256_gcm(), nullptr, key.data(), nonce.data()) == 1;
    if (ok && !associated.empty())
    {
        ok = EVP_DecryptUpdate(context.get(), nullptr, &size, associated.data(), static_cast<int>(associated.size())) ==
             1;
    }
    if (ok && !ciphertext.empty())
    {
        ok = EVP_DecryptUpdate(context.get(), out.data(), &size, ciphertext.data(),
                               static_cast<int>(ciphertext.size())) == 1;
    }
    std::uint8_t none = 0;
    ok = ok && EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_GCM_SET_TAG, static_cast<int>(tag_size), tag.data()) == 1 &&
         EVP_DecryptFinal_ex(context.get(), &none, &size) == 1;
    if (!ok)
    {
        wipe(out);
        return not_authentic();
    }
    return out;
}

Result<Bytes> seal_env(const Bytes32& recipient_public, View plaintext)
{
    auto secret = random_fixed<32>();
    const auto ephemeral = x25519_public(secret);
    auto shared = x25519_shared(secret, recipient_public);
    wipe(secret);
    if (!shared) { return std::move(shared).error(); }
    const auto nonce = random_fixed<12>();
    auto out = copy(ephemeral);
    append(out, nonce);
    append(out, aes256_gcm_seal(*shared, nonce, plaintext));
    wipe(*shared);
    return out;
}

Result<Bytes> open_env(const Bytes32& recipient_secret, View blob)
{
    if (blob.size() < 32 + 12 + tag_size)
    {
        return Error{Errc::invalid_argument,
                     "encrypted environment of " + std::to_string(blob.size()) + " bytes: at least 60 expected",
                     {},
                     {}};
    }
    Bytes32 ephemeral;
    Nonce nonce;
    std::copy_n(blob.begin(), 32, ephemeral.begin());
    std::copy_n(blob.begin() + 32, 12, nonce.begin());
    auto shared = x25519_shared(recipient_secret, ephemeral);
    if (!shared) { return std::move(shared).error(); }
    auto out = aes256_gcm_open(*shared, nonce, blob.subspan(44));
    wipe(*shared);
    return out;
}

} // namespace dstack::crypto
