#include "services/kms-local/release.hpp"
#include "shared/crypto/curve25519.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/crypto/kms_keys.hpp"
#include "shared/crypto/x509.hpp"
#include "tests/catch.hpp"
#include <ctime>

using namespace dstack;
using namespace dstack::kms;

namespace
{
RootKeys fresh()
{
    auto keys = generate_root_keys();
    REQUIRE(keys);
    return std::move(*keys);
}

attestation::BootInfo boot()
{
    attestation::BootInfo out;
    out.app_id = std::string(40, 'a');
    out.instance_id = std::string(40, 'b');
    out.os_image_hash = std::string(64, 'c');
    return out;
}
} // namespace

TEST_CASE("only a complete, well-formed answer of the webhook allows anything")
{
    struct Case
    {
        int status;
        std::string_view body;
        bool good;
        bool allowed;
        std::string_view error;
    };
    const Case cases[] = {
        {200, R"({"isAllowed":true,"gatewayAppId":"g","reason":"","extra":1})", true, true, ""},
        {201, R"({"isAllowed":false,"gatewayAppId":"","reason":"compose hash not allowed"})", true, false, ""},
        {200, R"({"isAllowed":"true","gatewayAppId":"","reason":""})", false, false,
         "failed to decode response from u, status=200"},
        {200, R"({"isAllowed":1,"gatewayAppId":"","reason":""})", false, false, "failed to decode"},
        {200, R"({"isAllowed":true,"gatewayAppId":null,"reason":""})", false, false, "failed to decode"},
        {200, R"({"isAllowed":true,"reason":""})", false, false, "failed to decode"},
        {200, R"({"isAllowed":true,"gatewayAppId":""})", false, false, "failed to decode"},
        {200, R"([true])", false, false, "failed to decode"},
        {200, "", false, false, "failed to decode"},
        {200, R"({"isAllowed":true,"gatewayAppId":"","reason":""} x)", false, false, "failed to decode"},
        {500, R"({"isAllowed":true,"gatewayAppId":"","reason":""})", false, false, "auth api u returned 500"},
        {302, R"({"isAllowed":true,"gatewayAppId":"","reason":""})", false, false, "auth api u returned 302"},
    };
    for (const auto& c : cases)
    {
        INFO(c.status << ' ' << c.body);
        const auto reply = parse_auth_reply("u", c.status, c.body);
        REQUIRE(bool(reply) == c.good);
        if (c.good) { CHECK(reply->is_allowed == c.allowed); }
        else { CHECK(reply.error().message.starts_with(c.error)); }
    }
}

TEST_CASE("the webhook's description needs its five keys")
{
    const auto good = parse_auth_info(
        "u", 200, R"({"status":"ok","kmsContractAddr":"c","gatewayAppId":"g","chainId":1,"appImplementation":"i"})");
    REQUIRE(good);
    CHECK(good->chain_id == 1);
    CHECK(good->kms_contract_address == "c");
    for (const auto* bad :
         {R"({"status":"ok","kmsContractAddr":"c","gatewayAppId":"g","chainId":"1","appImplementation":"i"})",
          R"({"status":"ok","kmsContractAddr":"c","gatewayAppId":"g","chainId":-1,"appImplementation":"i"})",
          R"({"kmsContractAddr":"c","gatewayAppId":"g","chainId":1,"appImplementation":"i"})", "{}"})
    {
        CHECK_FALSE(parse_auth_info("u", 200, bad));
    }
}

TEST_CASE("one slash joins the webhook's URL and the path")
{
    CHECK(boot_auth_url("http://h:1") == "http://h:1/bootAuth/app");
    CHECK(boot_auth_url("http://h:1/x/") == "http://h:1/x/bootAuth/app");
}

TEST_CASE("released keys are those of the app and the instance")
{
    const auto root = fresh();
    const auto keys = release(root, boot(), "gateway");
    REQUIRE(keys);
    CHECK(keys->ca_cert == root.ca_cert_pem);
    CHECK(keys->gateway_app_id == "gateway");
    CHECK(keys->os_image_hash == boot().os_image_hash);
    for (const auto* key : {&keys->disk_crypt_key, &keys->env_crypt_key, &keys->k256_key}) { CHECK(key->size() == 64); }
    CHECK(keys->k256_signature.size() == 130);

    const auto again = release(root, boot(), "gateway");
    CHECK(again->disk_crypt_key == keys->disk_crypt_key);

    auto other_instance = boot();
    other_instance.instance_id = std::string(40, 'd');
    const auto theirs = release(root, other_instance, "");
    CHECK(theirs->disk_crypt_key != keys->disk_crypt_key);
    CHECK(theirs->env_crypt_key == keys->env_crypt_key);
    auto other_app = boot();
    other_app.app_id = std::string(40, 'd');
    const auto foreign = release(root, other_app, "");
    CHECK(foreign->disk_crypt_key != keys->disk_crypt_key);
    CHECK(foreign->env_crypt_key != keys->env_crypt_key);
    CHECK(foreign->k256_key != keys->k256_key);

    auto bad = boot();
    bad.app_id.pop_back();
    CHECK_FALSE(release(root, bad, ""));
}

TEST_CASE("the env public key is the one whose secret the app gets, and is signed by the KMS")
{
    const auto root = fresh();
    const auto app_id = crypto::from_hex(boot().app_id);
    const auto answer = env_public_key(root, *app_id, 1'790'000'000);
    REQUIRE(answer);
    const auto secret = crypto::from_hex_fixed<32>(release(root, boot(), "")->env_crypt_key);
    CHECK(crypto::to_hex(crypto::x25519_public(*secret)) == answer->public_key);

    const auto public_key = crypto::from_hex(answer->public_key);
    const auto kms = identity_of(root)->k256_pubkey;
    const auto legacy = crypto::recover_for_app(crypto::env_pubkey_domain, *app_id, {}, *public_key,
                                                *crypto::from_hex_fixed<65>(answer->signature));
    const auto dated = crypto::recover_for_app(crypto::env_pubkey_domain, *app_id, answer->timestamp, *public_key,
                                               *crypto::from_hex_fixed<65>(answer->signature_v1));
    REQUIRE(legacy);
    REQUIRE(dated);
    CHECK(crypto::to_hex(*legacy) == kms);
    CHECK(crypto::to_hex(*dated) == kms);

    const auto short_id = env_public_key(root, crypto::View{*app_id}.first(19), 0);
    REQUIRE_FALSE(short_id);
    CHECK(short_id.error().message == "app_id must be 20 bytes");
}

TEST_CASE("the RPC certificate is the KMS's own and says so")
{
    const auto root = fresh();
    const auto rpc = make_rpc_identity(root, {"localhost"}, {"127.0.0.1", "10.0.2.2"});
    REQUIRE(rpc);
    const auto leaf = crypto::parse_cert_pem(rpc->chain_pem);
    REQUIRE(leaf);
    CHECK(crypto::verify_cert(*leaf, *crypto::parse_cert_pem(root.ca_cert_pem), std::time(nullptr)));
    CHECK(leaf->dns_names == std::vector<std::string>{"localhost"});
    CHECK(leaf->ip_addresses == std::vector<std::string>{"127.0.0.1", "10.0.2.2"});
    const auto usage = leaf->extension(crypto::oid::cert_usage);
    REQUIRE(usage);
    REQUIRE(*usage);
    CHECK(crypto::text(**usage) == "kms:rpc");
    CHECK(rpc->chain_pem.ends_with(root.ca_cert_pem));
    CHECK_FALSE(make_rpc_identity(root, {"localhost"}, {"10.0.2"}));
}

TEST_CASE("the image that was attested is the one that was asked for")
{
    attestation::Claims claims;
    claims.os_image_hash = std::string(64, 'c');
    CHECK(check_image(claims, ""));
    CHECK(check_image(claims, R"({"cpu_count":1})"));
    CHECK(check_image(claims, R"({"os_image_hash":")" + std::string(64, 'C') + R"("})"));
    CHECK_FALSE(check_image(claims, R"({"os_image_hash":")" + std::string(64, 'd') + R"("})"));
    CHECK_FALSE(check_image(claims, "not json"));
}

TEST_CASE("the host key is 64 hex digits in a file")
{
    CHECK(parse_host_key(std::string(64, 'a') + "\n"));
    CHECK_FALSE(parse_host_key(std::string(63, 'a')));
    CHECK_FALSE(parse_host_key(""));
}
