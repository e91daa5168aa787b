#pragma once
#include "shared/base/result.hpp"
#include "shared/crypto/p256.hpp"
#include <optional>

namespace dstack::crypto
{

/// Upstream's extensions (1.3.6.1.4.1.62397.1.*); their value is wrapped in a second OCTET STRING.
namespace oid
{
inline constexpr std::string_view tdx_quote = "1.3.6.1.4.1.62397.1.1";
inline constexpr std::string_view event_log = "1.3.6.1.4.1.62397.1.2";
inline constexpr std::string_view app_id = "1.3.6.1.4.1.62397.1.3";
inline constexpr std::string_view cert_usage = "1.3.6.1.4.1.62397.1.4"; ///< "kms:rpc", "app:ca", ...
inline constexpr std::string_view attestation = "1.3.6.1.4.1.62397.1.8";
} // namespace oid

struct Extension
{
    std::string oid;
    Bytes value; ///< without the wrapping OCTET STRING
};

/// What a certificate shall say. Times are Unix seconds.
struct CertSpec
{
    std::string common_name;
    std::string organization{};
    std::vector<std::string> dns_names{};
    std::vector<std::string> ip_addresses{}; ///< IPv4 or IPv6 text
    std::optional<int> ca_path_length{};     ///< set: a CA that may have that many CAs below it
    bool server_auth = false;
    bool client_auth = false;
    std::vector<Extension> extensions{};
    std::int64_t not_before = 157766400; ///< 1975, as upstream: a guest's clock may be far off
    std::int64_t not_after = 0;          ///< 0: ten years after the time of issue
};

/// Both return PEM.
Result<std::string> self_signed_cert(const CertSpec& spec, const P256Key& key);
/// `subject_spki` is the DER SubjectPublicKeyInfo of the key that is certified.
Result<std::string> issue_cert(const CertSpec& spec, View subject_spki, std::string_view issuer_pem,
                               const P256Key& issuer_key);

/// A parsed certificate, as plain values.
struct Certificate
{
    Bytes der;
    Bytes32 fingerprint{}; ///< SHA-256 of the DER
    Bytes spki_der;
    std::string common_name;
    std::string issuer_common_name;
    bool is_ca = false;
    std::int64_t not_before = 0;
    std::int64_t not_after = 0;
    std::vector<std::string> dns_names;
    std::vector<std::string> ip_addresses;

    std::string pem() const;
    /// The inner value of one of upstream's extensions; nullopt when absent. Twice, or not an OCTET STRING: an error.
    Result<std::optional<Bytes>> extension(std::string_view oid) const;
};

/// Refuses trailing bytes and more than 1 MiB.
Result<Certificate> parse_cert_der(View der);
/// The first certificate of a PEM text.
Result<Certificate> parse_cert_pem(std::string_view pem);

/// Whether `leaf` is signed by `ca`, directly or through `intermediates`, and all are valid at `unix_time`. The message
/// says which rule failed. Host names are not checked here.
Result<Done> verify_cert(const Certificate& leaf, const Certificate& ca, std::int64_t unix_time,
                         const std::vector<Certificate>& intermediates = {});

/// Whether `key` is the private half of the certificate's key.
bool matches(const Certificate& cert, const P256Key& key);

} // namespace dstack::crypto
