#include "shared/crypto/aead.hpp"
#include "shared/crypto/curve25519.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/crypto/k256.hpp"
#include "shared/crypto/kdf.hpp"
#include "tests/catch.hpp"

using namespace dstack;
using namespace dstack::crypto;

namespace
{
Bytes unhex(std::string_view text)
{
    auto bytes = from_hex(text);
    REQUIRE(bytes);
    return std::move(*bytes);
}
template <std::size_t N>
Fixed<N> fixed(std::string_view text)
{
    auto bytes = from_hex_fixed<N>(text);
    REQUIRE(bytes);
    return *bytes;
}
} // namespace

TEST_CASE("HKDF-SHA-256 gives RFC 5869's test cases 1 and 3")
{
    const auto key = unhex("0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b");
    CHECK(to_hex(hkdf_sha256(unhex("000102030405060708090a0b0c"), key, unhex("f0f1f2f3f4f5f6f7f8f9"), 42)) ==
          "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865");
    CHECK(to_hex(hkdf_sha256({}, key, {}, 42)) ==
          "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8");
}

TEST_CASE("a derivation's context is the concatenation of its parts")
{
    const auto key = view("input key material");
    CHECK(derive(key, {view("context one"), view("context two")}) == derive(key, {view("context onecontext two")}));
    CHECK(derive(key, {view("a")}) != derive(key, {view("b")}));
    const auto direct = hkdf_sha256(view("RATLS"), key, view("a"), 32);
    CHECK(to_hex(derive(key, {view("a")})) == to_hex(direct));
}

TEST_CASE("X25519 agrees as in RFC 7748 section 6.1")
{
    const auto alice = fixed<32>("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
    const auto bob = fixed<32>("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb");
    CHECK(to_hex(x25519_public(alice)) == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
    CHECK(to_hex(x25519_public(bob)) == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
    const auto one = x25519_shared(alice, x25519_public(bob));
    const auto other = x25519_shared(bob, x25519_public(alice));
    REQUIRE(one);
    REQUIRE(other);
    CHECK(to_hex(*one) == "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
    CHECK(*one == *other);
}

TEST_CASE("X25519 refuses a peer key of small order") { CHECK_FALSE(x25519_shared(random_fixed<32>(), Bytes32{})); }

TEST_CASE("Ed25519 signs as in RFC 8032 section 7.1, test 2")
{
    const auto seed = fixed<32>("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb");
    const auto key = ed25519_public(seed);
    CHECK(to_hex(key) == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
    const auto message = unhex("72");
    auto signature = ed25519_sign(seed, message);
    CHECK(to_hex(signature) == "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
                               "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00");
    CHECK(ed25519_verify(key, message, signature));
    CHECK_FALSE(ed25519_verify(key, unhex("73"), signature));
    CHECK_FALSE(ed25519_verify(ed25519_public(Bytes32{}), message, signature));
    signature[10] ^= 1U;
    CHECK_FALSE(ed25519_verify(key, message, signature));
}

TEST_CASE("AES-256-GCM gives the published ciphertext")
{
    // McGrew & Viega, test cases 14 and 16
    CHECK(to_hex(aes256_gcm_seal({}, {}, Bytes(16, 0))) ==
          "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919");
    const auto key = fixed<32>("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308");
    const auto nonce = fixed<12>("cafebabefacedbaddecaf888");
    const auto plain =
        unhex("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525"
              "b16aedf5aa0de657ba637b39");
    const auto associated = unhex("feedfacedeadbeeffeedfacedeadbeefabaddad2");
    const auto sealed = aes256_gcm_seal(key, nonce, plain, associated);
    CHECK(to_hex(sealed) ==
          "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838"
          "c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b");
    const auto opened = aes256_gcm_open(key, nonce, sealed, associated);
    REQUIRE(opened);
    CHECK(*opened == plain);
    CHECK_FALSE(aes256_gcm_open(key, nonce, sealed, {}));
    CHECK_FALSE(aes256_gcm_open(key, nonce, View{sealed}.first(15), associated));
    for (std::size_t i = 0; i < sealed.size(); ++i)
    {
        auto changed = sealed;
        changed[i] ^= 0x80U;
        CHECK_FALSE(aes256_gcm_open(key, nonce, changed, associated));
    }
}

TEST_CASE("an encrypted environment of upstream's opens")
{
    const auto secret = fixed<32>("7c282bf94b35dc47801dc953bfa0896fc2bd313381d3e8eca4e42f6536d2a96f");
    const auto blob =
        unhex("0bd18749612f4c8b9dd583c7d6a646b90abd34e3c731a7708d0caf9039095641e1f0948e775f0b7351788db7f246d51806954626"
              "dcccb6a60d64665ca3715c6bef75616cab476d27bba04080361200d6a58cec");
    const auto opened = open_env(secret, blob);
    REQUIRE(opened);
    CHECK(text(*opened) == R"([{"key":"","value":""}])");
    CHECK_FALSE(open_env(secret, View{blob}.first(59)));

    const auto again = seal_env(x25519_public(secret), *opened);
    REQUIRE(again);
    CHECK(again->size() == blob.size());
    const auto reopened = open_env(secret, *again);
    REQUIRE(reopened);
    CHECK(*reopened == *opened);
}

TEST_CASE("secp256k1 recovers the signer, and refuses what is malformed")
{
    const auto secret = k256_generate();
    const auto key = k256_public(secret);
    REQUIRE(key);
    const auto digest = sha256("message");
    const auto signature = k256_sign(secret, digest);
    REQUIRE(signature);
    const auto signer = k256_recover(digest, *signature);
    REQUIRE(signer);
    CHECK(*signer == *key);
    const auto other = k256_recover(sha256("other"), *signature);
    CHECK((!other || *other != *key));

    CHECK_FALSE(k256_public(Bytes32{}));
    CHECK_FALSE(k256_sign(fixed<32>("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"), digest));
    CHECK_FALSE(k256_recover(digest, K256Signature{}));
    auto bad = *signature;
    bad.back() = 27;
    CHECK_FALSE(k256_recover(digest, bad));
}
