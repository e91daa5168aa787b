#include "services/kms-supervisor/meta.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/crypto/x509.hpp"
#include "tests/catch.hpp"
#include <ctime>
#include <nlohmann/json.hpp>

using namespace dstack;
using namespace dstack::kms_supervisor;

namespace
{

struct Kms
{
    crypto::P256Key key = crypto::P256Key::generate();
    std::string ca;
    crypto::Bytes leaf;
};

Kms make_kms(std::optional<int> path_length = 1)
{
    Kms kms;
    crypto::CertSpec spec{.common_name = "Dstack KMS CA"};
    spec.ca_path_length = path_length;
    auto ca = crypto::self_signed_cert(spec, kms.key);
    REQUIRE(ca);
    kms.ca = *ca;
    const auto leaf =
        crypto::issue_cert({.common_name = "kms"}, crypto::P256Key::generate().spki_der(), kms.ca, kms.key);
    REQUIRE(leaf);
    kms.leaf = crypto::parse_cert_pem(*leaf)->der;
    return kms;
}

nlohmann::json meta(const Kms& kms)
{
    return {{"ca_cert", kms.ca}, {"k256_pubkey", "02" + std::string(64, 'a')}, {"is_dev", true}};
}

} // namespace

TEST_CASE("a KMS that proves its CA is ready, and known by its CA and key")
{
    const auto kms = make_kms();
    const auto probe = judge(200, meta(kms).dump(), kms.leaf, std::time(nullptr));
    INFO(probe.reason);
    CHECK(probe.kind == Probe::Kind::ready);
    CHECK(probe.identity.ca_fingerprint == crypto::to_hex(crypto::parse_cert_pem(kms.ca)->fingerprint));
    CHECK(probe.identity.k256_pubkey == "02" + std::string(64, 'a'));
}

TEST_CASE("anything else that answers is not ready, with the reason")
{
    const auto kms = make_kms();
    const auto other = make_kms();
    const auto no_ca = make_kms(std::nullopt);
    const auto now = static_cast<std::int64_t>(std::time(nullptr));
    const auto with = [&kms](const char* key, nlohmann::json value)
    {
        auto json = meta(kms);
        json[key] = std::move(value);
        return json.dump();
    };
    struct Case
    {
        int status;
        std::string body;
        crypto::Bytes leaf;
        std::int64_t at;
        std::string_view reason;
    };
    const Case cases[] = {
        {400, R"({"error":"auth api http://x: connection_refused"})", kms.leaf, now,
         "status 400: auth api http://x: connection_refused"},
        {502, "<html>", kms.leaf, now, "status 502: <html>"},
        {200, "null", kms.leaf, now, "not a JSON object"},
        {200, "{}", kms.leaf, now, "no ca_cert"},
        {200, with("ca_cert", 1), kms.leaf, now, "no ca_cert"},
        {200, with("ca_cert", "x"), kms.leaf, now, "ca_cert: not a PEM certificate"},
        {200, with("ca_cert", no_ca.ca), kms.leaf, now, "not a CA"},
        {200, with("k256_pubkey", "02"), kms.leaf, now, "k256_pubkey: expected 33 bytes"},
        {200, with("ca_cert", other.ca), kms.leaf, now,
         "TLS: certificate 'kms' is not valid"}, // a copied CA certificate
        {200, meta(kms).dump(), other.leaf, now, "TLS: certificate 'kms' is not valid"},
        {200, meta(kms).dump(), {}, now, "TLS: not a certificate"},
        {200, meta(kms).dump(), kms.leaf, now + std::int64_t{86400} * 366 * 11, "expired"},
    };
    for (const auto& c : cases)
    {
        INFO(c.reason);
        const auto probe = judge(c.status, c.body, c.leaf, c.at);
        CHECK(probe.kind == Probe::Kind::answered);
        CHECK(probe.reason.find(c.reason) != std::string::npos);
    }
}

TEST_CASE("a pin reads back; a damaged one is an error, never nothing")
{
    const Identity identity{std::string(64, 'a'), std::string(66, 'b')};
    const auto again = decode_identity(encode(identity));
    REQUIRE(again);
    CHECK(*again == identity);
    const auto text = encode(identity);
    for (const auto& bad : {std::string{}, std::string{"{}"}, std::string{"null"}, text.substr(0, text.size() / 2)})
    {
        const auto damaged = decode_identity(bad);
        REQUIRE_FALSE(damaged);
        CHECK(damaged.error().code == Errc::data_loss);
    }
}
