#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/crypto/x509.hpp"
#include "tests/catch.hpp"
#include <ctime>

using namespace dstack;
using namespace dstack::crypto;

namespace
{

struct Authority
{
    P256Key key = P256Key::generate();
    std::string pem;
};

Authority make_ca(std::string name, int path_length = 1)
{
    Authority ca;
    CertSpec spec{.common_name = std::move(name), .organization = "Dstack"};
    spec.ca_path_length = path_length;
    auto pem = self_signed_cert(spec, ca.key);
    REQUIRE(pem);
    ca.pem = *pem;
    return ca;
}

Certificate parsed(std::string_view pem)
{
    auto cert = parse_cert_pem(pem);
    REQUIRE(cert);
    return std::move(*cert);
}

} // namespace

TEST_CASE("a self-signed CA says what was asked")
{
    const auto ca = make_ca("Dstack KMS CA");
    const auto cert = parsed(ca.pem);
    CHECK(cert.common_name == "Dstack KMS CA");
    CHECK(cert.issuer_common_name == "Dstack KMS CA");
    CHECK(cert.is_ca);
    CHECK(cert.not_before == 157766400);
    CHECK(cert.not_after > std::time(nullptr) + std::int64_t{3600} * 24 * 3640);
    CHECK(cert.fingerprint == sha256(cert.der));
    CHECK(matches(cert, ca.key));
    CHECK_FALSE(matches(cert, P256Key::generate()));
    CHECK(cert.pem() == ca.pem);
    CHECK(verify_cert(cert, cert, std::time(nullptr)));
}

TEST_CASE("a leaf carries its names, usages and extensions")
{
    const auto ca = make_ca("root");
    const auto key = P256Key::generate();
    CertSpec spec{.common_name = "kms"};
    spec.dns_names = {"localhost", "kms.example"};
    spec.ip_addresses = {"127.0.0.1", "10.0.2.2", "::1"};
    spec.server_auth = true;
    spec.extensions = {{std::string{oid::app_id}, Bytes(20, 0xaa)},
                       {std::string{oid::cert_usage}, copy(view("kms:rpc"))}};
    const auto pem = issue_cert(spec, key.spki_der(), ca.pem, ca.key);
    REQUIRE(pem);
    const auto cert = parsed(*pem);
    CHECK(cert.issuer_common_name == "root");
    CHECK_FALSE(cert.is_ca);
    CHECK(cert.dns_names == spec.dns_names);
    CHECK(cert.ip_addresses == spec.ip_addresses);
    CHECK(cert.spki_der == key.spki_der());
    const auto app_id = cert.extension(oid::app_id);
    REQUIRE(app_id);
    REQUIRE(*app_id);
    CHECK(**app_id == Bytes(20, 0xaa));
    const auto absent = cert.extension(oid::attestation);
    REQUIRE(absent);
    CHECK_FALSE(*absent);
    CHECK(verify_cert(cert, parsed(ca.pem), std::time(nullptr)));
}

TEST_CASE("a chain is refused for the right reason")
{
    const auto ca = make_ca("root");
    const auto other = make_ca("root"); // same name, other key
    const auto key = P256Key::generate();
    const auto now = static_cast<std::int64_t>(std::time(nullptr));
    const CertSpec spec{.common_name = "leaf", .not_before = now - 100, .not_after = now + 100};
    const auto leaf = parsed(*issue_cert(spec, key.spki_der(), ca.pem, ca.key));
    struct Case
    {
        const Authority& ca;
        std::int64_t at;
        std::string_view reason; ///< empty: valid
    };
    const Case cases[] = {
        {ca, now, ""}, {ca, now - 200, "not yet valid"}, {ca, now + 200, "expired"}, {other, now, "signature failure"}};
    for (const auto& c : cases)
    {
        INFO(c.reason);
        const auto verdict = verify_cert(leaf, parsed(c.ca.pem), c.at);
        CHECK(bool(verdict) == c.reason.empty());
        if (!verdict) { CHECK(verdict.error().message.find(c.reason) != std::string::npos); }
    }
}

TEST_CASE("a leaf cannot issue, a CA below the root can")
{
    const auto root = make_ca("root", 1);
    const auto middle_key = P256Key::generate();
    const auto leaf_key = P256Key::generate();
    const auto now = static_cast<std::int64_t>(std::time(nullptr));
    for (const bool is_ca : {true, false})
    {
        CertSpec middle_spec{.common_name = "middle"};
        if (is_ca) { middle_spec.ca_path_length = 0; }
        const auto middle = issue_cert(middle_spec, middle_key.spki_der(), root.pem, root.key);
        REQUIRE(middle);
        const auto leaf = issue_cert({.common_name = "leaf"}, leaf_key.spki_der(), *middle, middle_key);
        REQUIRE(leaf);
        CHECK(bool(verify_cert(parsed(*leaf), parsed(root.pem), now, {parsed(*middle)})) == is_ca);
    }
}

TEST_CASE("what cannot be issued is an error")
{
    const auto ca = make_ca("root");
    const auto key = P256Key::generate();
    CertSpec bad_ip{.common_name = "x"};
    bad_ip.ip_addresses = {"10.0.2"};
    CertSpec bad_dns{.common_name = "x"};
    bad_dns.dns_names = {"a\nb"};
    CertSpec bad_oid{.common_name = "x"};
    bad_oid.extensions = {{"not.an.oid", {}}};
    for (const auto& spec : {bad_ip, bad_dns, bad_oid})
    {
        CHECK_FALSE(issue_cert(spec, key.spki_der(), ca.pem, ca.key));
    }
    CHECK_FALSE(issue_cert({.common_name = "x"}, key.spki_der(), ca.pem, key)); // wrong issuer key
    CHECK_FALSE(issue_cert({.common_name = "x"}, view("no key"), ca.pem, ca.key));
}

TEST_CASE("what is no certificate is refused")
{
    const auto cert = parsed(make_ca("root").pem);
    auto longer = cert.der;
    longer.push_back(0);
    CHECK_FALSE(parse_cert_der(longer));
    CHECK_FALSE(parse_cert_der(View{cert.der}.first(cert.der.size() - 1)));
    CHECK_FALSE(parse_cert_der({}));
    for (const auto* bad :
         {"", "-----BEGIN CERTIFICATE-----\n", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"})
    {
        CHECK_FALSE(parse_cert_pem(bad));
    }
}

TEST_CASE("P-256 keys go through PEM, and others are refused")
{
    const auto key = P256Key::generate();
    const auto again = P256Key::from_pem(key.pkcs8_pem());
    REQUIRE(again);
    CHECK(again->scalar() == key.scalar());
    CHECK(again->point() == key.point());
    // openssl ecparam -name secp384r1 -genkey | openssl pkcs8 -topk8 -nocrypt; openssl genpkey -algorithm ed25519
    const auto* const ed25519 = "-----BEGIN PRIVATE KEY-----\n"
                                "MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n"
                                "-----END PRIVATE KEY-----\n";
    CHECK_FALSE(P256Key::from_pem(ed25519));
    CHECK_FALSE(P256Key::from_pem(""));
    CHECK_FALSE(P256Key::from_scalar(Bytes32{}));
    Bytes32 too_big;
    too_big.fill(0xff);
    CHECK_FALSE(P256Key::from_scalar(too_big));
}
