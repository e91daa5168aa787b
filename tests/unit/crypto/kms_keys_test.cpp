#include "shared/crypto/curve25519.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/crypto/kms_keys.hpp"
#include "tests/catch.hpp"

using namespace dstack;
using namespace dstack::crypto;

namespace
{
P256Key root_key()
{
    // The scalar of the key in upstream's vector for derive_dh_secret.
    const auto scalar = from_hex_fixed<32>("f57527cea4ab7ffb49af99b158cdc0e3ec06398f528349ea236b7d2afe19cec1");
    REQUIRE(scalar);
    auto key = P256Key::from_scalar(*scalar);
    REQUIRE(key);
    return *key;
}
} // namespace

TEST_CASE("a P-256 key is encoded as upstream encodes it")
{
    CHECK(to_hex(root_key().pkcs8_der()) == "308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420"
                                            "f57527cea4ab7ffb49af99b158cdc0e3ec06398f528349ea236b7d2afe19cec1"
                                            "a14403420004"
                                            "91f50522407ce29dce3ed7d31a15d80c1c42f13a23552d2b33a0ce09ee11e47b"
                                            "ce95936f3e7f80d195f879e28e1b144ef37ac9ab8e36a690cbf930b775897b27");
}

TEST_CASE("derive_dh_secret gives upstream's vector")
{
    const auto secret = derive_dh_secret(root_key(), {view("context one"), view("context two")});
    REQUIRE(secret);
    CHECK(to_hex(*secret) == "663afd58820be8ad645f9c035e93199d114ab16f738db62393bc1d7d623e8813");
}

TEST_CASE("the application key and its signature are upstream's")
{
    Bytes32 root;
    root.fill(7);
    const auto derived = app_k256_key(root, view("app-a"));
    REQUIRE(derived);
    CHECK(to_hex(*derived) == "ed0fd39ce7c26a185f396945168972807b2f77820f14ee4bda9e1f46e8b4596d");
    const auto key = k256_public(*derived);
    const auto signer = k256_public(root);
    REQUIRE(key);
    REQUIRE(signer);
    // Upstream's golden signature: both are deterministic, so ours is the same 65 bytes.
    const auto golden =
        from_hex_fixed<65>("e12a5f4567f6d9f80b01944dea333bbed5b418347f4260ed95e9ee198a03014e1716a40d2ed6cd36"
                           "7e335b33e231510aa98216e62b631f2b75c181c2f989656800");
    REQUIRE(golden);
    const auto golden_signer = recover_for_app(kms_issued_domain, view("app-a"), {}, *key, *golden);
    REQUIRE(golden_signer);
    CHECK(*golden_signer == *signer);

    const auto ours = sign_for_app(root, kms_issued_domain, view("app-a"), {}, *key);
    REQUIRE(ours);
    const auto our_signer = recover_for_app(kms_issued_domain, view("app-a"), {}, *key, *ours);
    REQUIRE(our_signer);
    CHECK(*our_signer == *signer);
    CHECK(to_hex(*ours) == to_hex(*golden));
}

TEST_CASE("a legacy signature over an environment key recovers its KMS")
{
    const auto key = from_hex_fixed<32>("e33a1832c6562067ff8f844a61e51ad051f1180b66ec2551fb0251735f3ee90a");
    const auto signature =
        from_hex_fixed<65>("8542c49081fbf4e03f62034f13fbf70630bdf256a53032e38465a27c36fd6bed7a5e7111652004ae"
                           "f37f7fd92fbfc1285212c4ae6a6154203a48f5e16cad2cef00");
    REQUIRE(key);
    REQUIRE(signature);
    const auto signer = recover_for_app(env_pubkey_domain, Bytes20{}, {}, *key, *signature);
    REQUIRE(signer);
    CHECK(to_hex(*signer) == "0217610d74cbd39b6143842c6d8bc310d79da1d82cc9d17f8876376221eda0c38f");
    const auto dated = recover_for_app(env_pubkey_domain, Bytes20{}, 1, *key, *signature);
    CHECK((!dated || *dated != *signer));
}

TEST_CASE("keys of different apps and instances differ, and come back the same")
{
    const auto root = root_key();
    const Bytes20 a{1};
    const Bytes20 b{2};
    const auto disk = app_disk_key(root, a, b);
    REQUIRE(disk);
    CHECK(*disk == *app_disk_key(root_key(), a, b));
    CHECK(*disk != *app_disk_key(root, b, a));
    CHECK(*disk != *app_disk_key(root, a, {}));
    CHECK(*app_env_key(root, a) != *app_env_key(root, b));
    CHECK(*app_disk_key(root, a, {}) != *app_env_key(root, a));
    CHECK(app_ca_key(root, a)->scalar() != root.scalar());
}
