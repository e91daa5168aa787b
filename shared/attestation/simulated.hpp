#pragma once
#include "shared/attestation/boot_info.hpp"
#include "shared/crypto/bytes.hpp"
#include <cstdint>
#include <optional>

/// The simulated TEE of a development host. It proves one thing only: that this host's VMM started the instance with
/// these measurements. There is no hardware behind it, and every document says `"simulated":true`. Formats: README.md.
namespace dstack::attestation
{

using crypto::Bytes32;
using crypto::Bytes64;

/// What the VMM measured and vouches for.
struct Claims
{
    std::string vm_id;        ///< 1 to 128 bytes
    std::string app_id;       ///< 40 hex
    std::string compose_hash; ///< 64 hex
    std::string
        instance_id; ///< 40 hex, or empty (no_instance_id); disk keys depend on it: the VMM makes the seed once per VM
    std::string os_image_hash; ///< 64 hex
    std::uint32_t vcpu = 0;
    std::uint64_t memory_mib = 0;
    std::int64_t issued_at = 0; ///< Unix seconds

    bool operator==(const Claims&) const = default;
};

/// Upstream's rule: the first 20 bytes of SHA-256(seed || app id), as hex. Both arguments are bytes.
std::string make_instance_id(crypto::View seed, crypto::View app_id);

/// The public key by which the host's statements are known; the KMS needs only this, never the seed.
Bytes32 host_public_key(const Bytes32& host_seed);

/// The text of `.tee-simulator.json` for one start of one VM. It holds the instance's secret key: mode 0600, for that
/// VM only.
Result<std::string> make_simulator_config(const Bytes32& host_seed, const Claims& claims);
/// With a given nonce, for tests.
Result<std::string> make_simulator_config(const Bytes32& host_seed, const Claims& claims, const Bytes32& nonce);

/// The claims in a simulator config, not verified: what the guest may show its user.
Result<Claims> peek_claims(std::string_view simulator_config);

/// A quote over `report_data`, made inside the guest from its simulator config.
Result<std::string> make_quote(std::string_view simulator_config, const Bytes64& report_data);

struct Verified
{
    Claims claims;
    BootInfo boot_info;
    Bytes64 report_data{};
};

/// Fails when any byte differs from what the host and the instance signed, with the reason: invalid_argument for what
/// is no quote, unauthenticated for a bad signature, failed_precondition when it was made for another
/// `expected_report_data`.
Result<Verified> verify_quote(const Bytes32& host_public, std::string_view quote, const Bytes64& expected_report_data);

/// sha512("ratls-cert:" || SubjectPublicKeyInfo), which binds a quote to a TLS key (dstack-protocol.md H.5).
Bytes64 ratls_report_data(crypto::View spki_der);

/// What a simulated machine with these claims would measure (dstack-protocol.md H.2, H.4); exposed for `policy`
/// tooling.
BootInfo boot_info_of(const Claims& claims, const Bytes32& host_public);

struct RaTlsIdentity
{
    std::string cert_pem;
    std::string key_pem;
};
/// A fresh key, a quote over it, and a client certificate that carries the quote, signed by the KMS's temporary CA.
Result<RaTlsIdentity> make_ratls_identity(std::string_view simulator_config, std::string_view temp_ca_cert_pem,
                                          std::string_view temp_ca_key_pem);
/// Verifies the quote in a peer's certificate against the certificate's own key. nullopt: the certificate carries no
/// quote.
Result<std::optional<Verified>> verify_ratls_certificate(const Bytes32& host_public, crypto::View cert_der);

} // namespace dstack::attestation
