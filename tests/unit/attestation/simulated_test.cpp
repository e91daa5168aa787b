#include "shared/attestation/simulated.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/crypto/x509.hpp"
#include "tests/catch.hpp"
#include <ctime>
#include <nlohmann/json.hpp>

using namespace dstack;
using namespace dstack::attestation;
using dstack::crypto::P256Key;

namespace
{

Bytes32 seed(std::uint8_t fill)
{
    Bytes32 out;
    out.fill(fill);
    return out;
}

Claims example()
{
    Claims c;
    c.vm_id = "3f0c0d0e-1111-2222-3333-444455556666";
    c.app_id = std::string(40, 'a');
    c.compose_hash = std::string(64, 'b');
    c.instance_id = std::string(40, 'c');
    c.os_image_hash = std::string(64, 'd');
    c.vcpu = 2;
    c.memory_mib = 1024;
    c.issued_at = 1'790'000'000;
    return c;
}

Bytes64 report() { return crypto::sha512("report"); }

std::string example_quote()
{
    const auto config = make_simulator_config(seed(1), example(), seed(9));
    REQUIRE(config);
    auto quote = make_quote(*config, report());
    REQUIRE(quote);
    return std::move(*quote);
}

} // namespace

TEST_CASE("a quote proves the claims of its host")
{
    const auto verified = verify_quote(host_public_key(seed(1)), example_quote(), report());
    REQUIRE(verified);
    CHECK(verified->claims == example());
    CHECK(verified->boot_info.tee_variant == "dstack-tdx");
    CHECK(verified->boot_info.app_id == example().app_id);
    CHECK(verified->boot_info.compose_hash == example().compose_hash);
    CHECK(verified->boot_info.instance_id == example().instance_id);
    CHECK(verified->boot_info.os_image_hash == example().os_image_hash);
    CHECK(verified->boot_info.key_provider_info.empty());
    CHECK(boot_info_from_json(to_json(verified->boot_info)));
    CHECK(example_quote().find(R"("simulated":true)") != std::string::npos);
}

TEST_CASE("the formats do not drift")
{
    // The digest of a quote with fixed inputs. A change here makes older guests and KMSs refuse each other: it needs a
    // new version.
    CHECK(crypto::to_hex(crypto::sha256(example_quote())) ==
          "30474ddca9e2cc659d090a0304ba591da78e964cd6ac5286784a2c4f9f7b9de2");
    const auto info = boot_info_of(example(), host_public_key(seed(1)));
    CHECK(info.mr_aggregated == "e582d8ccf347b9e2f26f866aa0f02b8fc816ca23cb528d06494edb15d2f7738a");
    CHECK(info.mr_system == "80d8ca1564e99b928ca3d421ae8bc84be4986c5a1e7154a6d3f90501ef03a495");
}

TEST_CASE("another host, another key, other report data: refused with the reason")
{
    const auto quote = example_quote();
    const auto other_host = verify_quote(host_public_key(seed(2)), quote, report());
    REQUIRE_FALSE(other_host);
    CHECK(other_host.error().code == Errc::unauthenticated);
    CHECK(other_host.error().message == "simulated quote: the statement is not signed by this host's VMM");
    const auto other_report = verify_quote(host_public_key(seed(1)), quote, crypto::sha512("other"));
    REQUIRE_FALSE(other_report);
    CHECK(other_report.error().code == Errc::failed_precondition);
}

TEST_CASE("any changed bit of a quote is refused")
{
    const auto host = host_public_key(seed(1));
    const auto quote = example_quote();
    for (std::size_t i = 0; i < quote.size(); ++i)
    {
        for (const char bit : {'\x01', '\x20', '\x80'})
        {
            auto changed = quote;
            changed[i] = static_cast<char>(changed[i] ^ bit);
            INFO("byte " << i << " of " << quote.size());
            CHECK_FALSE(verify_quote(host, changed, report()));
        }
    }
    CHECK_FALSE(verify_quote(host, quote + "\n", report()));
    CHECK_FALSE(verify_quote(host, " " + quote, report()));
    CHECK_FALSE(verify_quote(host, quote.substr(0, quote.size() - 1), report()));
    CHECK_FALSE(verify_quote(host, "", report()));
    CHECK_FALSE(verify_quote(host, std::string(100'000, '{'), report()));
}

TEST_CASE("a guest that rewrites a claim in its own statement is refused")
{
    const auto config = make_simulator_config(seed(1), example());
    REQUIRE(config);
    const std::pair<std::string_view, nlohmann::json> changes[] = {
        {"vm_id", "other"},
        {"nonce", std::string(64, '0')},
        {"app_id", std::string(40, '0')},
        {"compose_hash", std::string(64, '0')},
        {"instance_id", ""},
        {"os_image_hash", std::string(64, '0')},
        {"vcpu", 64},
        {"memory_mib", 1},
        {"instance_key", crypto::to_hex(host_public_key(seed(7)))},
        {"issued_at", 1},
        {"platform", "dstack-amd-sev-snp"},
        {"simulated", false},
    };
    for (const auto& [key, value] : changes)
    {
        INFO(key);
        auto json = nlohmann::ordered_json::parse(*config);
        auto statement = nlohmann::ordered_json::parse(json["statement"].get<std::string>());
        REQUIRE(statement.contains(std::string{key}));
        statement[std::string{key}] = value;
        json["statement"] = statement.dump();
        const auto quote = make_quote(json.dump(), report()); // signed with the genuine instance key
        REQUIRE(quote);
        const auto verdict = verify_quote(host_public_key(seed(1)), *quote, report());
        REQUIRE_FALSE(verdict);
        CHECK(verdict.error().message == "simulated quote: the statement is not signed by this host's VMM");
    }
}

TEST_CASE("the key of one instance does not quote for another")
{
    const auto mine = nlohmann::ordered_json::parse(*make_simulator_config(seed(1), example()));
    auto theirs = nlohmann::ordered_json::parse(*make_simulator_config(seed(1), example()));
    CHECK(mine["instance_key"] != theirs["instance_key"]); // every start has a nonce of its own
    theirs["instance_key"] = mine["instance_key"];
    const auto quote = make_quote(theirs.dump(), report());
    REQUIRE(quote);
    const auto verdict = verify_quote(host_public_key(seed(1)), *quote, report());
    REQUIRE_FALSE(verdict);
    CHECK(verdict.error().message == "simulated quote: not signed by the instance's key");
}

TEST_CASE("claims that are not what they should be get no config")
{
    const auto with = [](auto change)
    {
        auto claims = example();
        change(claims);
        return bool(make_simulator_config(seed(1), claims));
    };
    CHECK(with([](Claims&) {}));
    CHECK(with([](Claims& c) { c.instance_id.clear(); }));
    CHECK_FALSE(with([](Claims& c) { c.vm_id.clear(); }));
    CHECK_FALSE(with([](Claims& c) { c.vm_id = "a b"; }));
    CHECK_FALSE(with([](Claims& c) { c.app_id.pop_back(); }));
    CHECK_FALSE(with([](Claims& c) { c.app_id[0] = 'A'; }));
    CHECK_FALSE(with([](Claims& c) { c.compose_hash = "0x" + c.compose_hash; }));
    CHECK_FALSE(with([](Claims& c) { c.os_image_hash.clear(); }));
    CHECK_FALSE(with([](Claims& c) { c.issued_at = -1; }));
}

TEST_CASE("a simulator config shows its claims and survives a newline at its end")
{
    const auto config = make_simulator_config(seed(1), example());
    REQUIRE(config);
    const auto claims = peek_claims(*config + "\n");
    REQUIRE(claims);
    CHECK(*claims == example());
    CHECK_FALSE(peek_claims("{}"));
    CHECK_FALSE(make_quote("not json", report()));
}

TEST_CASE("measurements follow every claim that the guest's identity stands on")
{
    const auto host = host_public_key(seed(1));
    const auto base = boot_info_of(example(), host);
    auto other_compose = example();
    other_compose.compose_hash = std::string(64, 'e');
    CHECK(boot_info_of(other_compose, host).mr_aggregated != base.mr_aggregated);
    CHECK(boot_info_of(other_compose, host).mr_system == base.mr_system);
    auto other_image = example();
    other_image.os_image_hash = std::string(64, 'e');
    CHECK(boot_info_of(other_image, host).mr_system != base.mr_system);
    auto more_memory = example();
    more_memory.memory_mib = 2048;
    CHECK(boot_info_of(more_memory, host).mr_system != base.mr_system);
    CHECK(boot_info_of(example(), host_public_key(seed(2))).device_id != base.device_id);
}

TEST_CASE("a certificate's quote counts only for the certificate's own key")
{
    const auto host = host_public_key(seed(1));
    const auto config = make_simulator_config(seed(1), example());
    REQUIRE(config);
    const auto ca_key = P256Key::generate();
    crypto::CertSpec ca_spec{.common_name = "Dstack Client Temp CA"};
    ca_spec.ca_path_length = 0;
    const auto ca = crypto::self_signed_cert(ca_spec, ca_key);
    REQUIRE(ca);
    const auto identity = make_ratls_identity(*config, *ca, ca_key.pkcs8_pem());
    REQUIRE(identity);
    const auto cert = crypto::parse_cert_pem(identity->cert_pem);
    REQUIRE(cert);
    CHECK(crypto::verify_cert(*cert, *crypto::parse_cert_pem(*ca), std::time(nullptr)));
    const auto key = P256Key::from_pem(identity->key_pem);
    REQUIRE(key);
    CHECK(crypto::matches(*cert, *key));
    const auto verified = verify_ratls_certificate(host, cert->der);
    REQUIRE(verified);
    REQUIRE(*verified);
    CHECK((*verified)->claims == example());

    // The same quote in a certificate for another key.
    const auto quote = cert->extension(crypto::oid::attestation);
    REQUIRE(quote);
    crypto::CertSpec stolen_spec{.common_name = "stolen"};
    stolen_spec.extensions.push_back({std::string{crypto::oid::attestation}, **quote});
    const auto stolen = crypto::issue_cert(stolen_spec, P256Key::generate().spki_der(), *ca, ca_key);
    REQUIRE(stolen);
    CHECK_FALSE(verify_ratls_certificate(host, crypto::parse_cert_pem(*stolen)->der));

    const auto plain = crypto::issue_cert({.common_name = "plain"}, ca_key.spki_der(), *ca, ca_key);
    REQUIRE(plain);
    const auto none = verify_ratls_certificate(host, crypto::parse_cert_pem(*plain)->der);
    REQUIRE(none);
    CHECK_FALSE(*none);
}

TEST_CASE("an instance id is upstream's: SHA-256 of seed and app id, cut to 20 bytes")
{
    CHECK(make_instance_id(crypto::view("ab"), crypto::view("c")) == "ba7816bf8f01cfea414140de5dae2223b00361a3");
}
