#include "shared/attestation/simulated.hpp"
#include "shared/crypto/curve25519.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/crypto/kdf.hpp"
#include "shared/crypto/x509.hpp"
#include <algorithm>
#include <nlohmann/json.hpp>

namespace dstack::attestation
{

namespace
{

using crypto::Bytes;
using crypto::View;
using crypto::view;
using Json = nlohmann::ordered_json;

constexpr std::string_view config_format = "dstack-tee-simulator/v1";
constexpr std::string_view statement_format = "dstack-simulated-statement/v1";
constexpr std::string_view quote_format = "dstack-simulated-quote/v1";
constexpr std::string_view platform = "dstack-tdx";
constexpr std::size_t max_document = 64 * 1024;

Error invalid(std::string message) { return {Errc::invalid_argument, std::move(message), {}, {}}; }

Bytes32 derive_seed(const Bytes32& host_seed, std::string_view purpose, View context)
{
    auto info = crypto::copy(view(purpose));
    crypto::append(info, context);
    auto bytes = crypto::hkdf_sha256(view("dstack-simulated-tee/v1"), host_seed, info, 32);
    Bytes32 out;
    std::copy_n(bytes.begin(), out.size(), out.begin());
    crypto::wipe(bytes);
    return out;
}

/// Reads the fields of one flat document in order; the first that is wrong is the error.
class Fields
{
  public:
    explicit Fields(std::string_view text, std::string_view what) : what_(what)
    {
        if (text.size() > max_document) { fail("longer than 64 KiB"); }
        else
        {
            json_ = Json::parse(text, nullptr, false);
            if (!json_.is_object()) { fail("not a JSON object"); }
        }
    }
    std::string text(std::string_view key)
    {
        const auto* const value = find<const std::string*>(key, "a string");
        return value != nullptr ? *value : std::string{};
    }
    template <std::size_t N>
    crypto::Fixed<N> hex(std::string_view key)
    {
        auto bytes = crypto::from_hex_fixed<N>(text(key));
        if (bytes) { return *bytes; }
        fail(std::string{key} + ": " + bytes.error().message);
        return {};
    }
    std::uint64_t number(std::string_view key)
    {
        const auto* const value = find<const Json::number_unsigned_t*>(key, "a number");
        return value != nullptr ? *value : 0;
    }
    void expect(std::string_view key, std::string_view constant)
    {
        if (text(key) != constant) { fail(std::string{key} + " is not " + std::string{constant}); }
    }
    void expect_simulated()
    {
        const auto* const value = find<const bool*>("simulated", "a boolean");
        if (value != nullptr && !*value) { fail("simulated is not true"); }
    }
    std::optional<Error> error() const { return error_; }

  private:
    template <class Pointer>
    Pointer find(std::string_view key, std::string_view kind)
    {
        if (error_) { return nullptr; }
        const auto found = json_.find(std::string{key});
        const auto value = found != json_.end() ? std::as_const(*found).template get_ptr<Pointer>() : nullptr;
        if (value == nullptr) { fail(std::string{key} + " is not " + std::string{kind}); }
        return value;
    }
    void fail(std::string reason)
    {
        if (!error_) { error_ = invalid(std::string{what_} + ": " + std::move(reason)); }
    }
    std::string_view what_;
    Json json_;
    std::optional<Error> error_;
};

struct Statement
{
    Claims claims;
    Bytes32 nonce{};
    Bytes32 instance_key{}; ///< public
};

struct Config
{
    Bytes32 instance_seed{};
    std::string statement;
    Bytes64 statement_signature{};
};

struct Quote
{
    std::string statement;
    Bytes64 statement_signature{};
    Bytes64 report_data{};
    Bytes64 signature{};
};

std::string encode(const Statement& s)
{
    const Json json = {{"format", statement_format},
                       {"simulated", true},
                       {"platform", platform},
                       {"vm_id", s.claims.vm_id},
                       {"nonce", crypto::to_hex(s.nonce)},
                       {"app_id", s.claims.app_id},
                       {"compose_hash", s.claims.compose_hash},
                       {"instance_id", s.claims.instance_id},
                       {"os_image_hash", s.claims.os_image_hash},
                       {"vcpu", s.claims.vcpu},
                       {"memory_mib", s.claims.memory_mib},
                       {"instance_key", crypto::to_hex(s.instance_key)},
                       {"issued_at", static_cast<std::uint64_t>(s.claims.issued_at)}};
    return json.dump();
}

std::string encode(const Config& c)
{
    const Json json = {{"format", config_format},  {"simulated", true},
                       {"platform", platform},     {"instance_key", crypto::to_hex(c.instance_seed)},
                       {"statement", c.statement}, {"statement_signature", crypto::to_hex(c.statement_signature)}};
    return json.dump();
}

std::string encode(const Quote& q)
{
    const Json json = {{"format", quote_format},
                       {"simulated", true},
                       {"statement", q.statement},
                       {"statement_signature", crypto::to_hex(q.statement_signature)},
                       {"report_data", crypto::to_hex(q.report_data)},
                       {"signature", crypto::to_hex(q.signature)}};
    return json.dump();
}

/// One document has one encoding: what does not read back as the same bytes was changed on the way.
template <class Document>
Result<Document> canonical(Document document, const Fields& fields, std::string_view text, std::string_view what)
{
    if (auto error = fields.error()) { return std::move(*error); }
    if (encode(document) != text) { return invalid(std::string{what} + ": not in its canonical form"); }
    return document;
}

Result<Done> check(const Claims& claims)
{
    if (claims.vm_id.empty() || claims.vm_id.size() > 128) { return invalid("vm_id must have 1 to 128 bytes"); }
    for (const char c : claims.vm_id)
    {
        if (c <= 0x20 || c > 0x7e) { return invalid("vm_id must be printable ASCII without spaces"); }
    }
    struct Rule
    {
        std::string_view key;
        const std::string& value;
        std::size_t bytes;
        bool may_be_empty;
    };
    const Rule rules[] = {{"app_id", claims.app_id, 20, false},
                          {"compose_hash", claims.compose_hash, 32, false},
                          {"instance_id", claims.instance_id, 20, true},
                          {"os_image_hash", claims.os_image_hash, 32, false}};
    for (const auto& rule : rules)
    {
        if (rule.value.empty() && rule.may_be_empty) { continue; }
        const auto bytes = crypto::from_hex(rule.value, rule.bytes);
        if (!bytes) { return Error{bytes.error()}.within(rule.key); }
        if (crypto::to_hex(*bytes) != rule.value)
        {
            return invalid(std::string{rule.key} + ": not lower-case hex without 0x");
        }
    }
    if (claims.issued_at < 0) { return invalid("issued_at is negative"); }
    return Done{};
}

Result<Statement> decode_statement(std::string_view text)
{
    Fields f{text, "statement"};
    f.expect("format", statement_format);
    f.expect_simulated();
    f.expect("platform", platform);
    Statement out;
    out.claims.vm_id = f.text("vm_id");
    out.nonce = f.hex<32>("nonce");
    out.claims.app_id = f.text("app_id");
    out.claims.compose_hash = f.text("compose_hash");
    out.claims.instance_id = f.text("instance_id");
    out.claims.os_image_hash = f.text("os_image_hash");
    out.claims.vcpu = static_cast<std::uint32_t>(f.number("vcpu"));
    out.claims.memory_mib = f.number("memory_mib");
    out.instance_key = f.hex<32>("instance_key");
    out.claims.issued_at = static_cast<std::int64_t>(f.number("issued_at"));
    auto statement = canonical(std::move(out), f, text, "statement");
    if (!statement) { return statement; }
    if (auto good = check(statement->claims); !good) { return std::move(good).error().within("statement"); }
    return statement;
}

Result<Config> decode_config(std::string_view text)
{
    constexpr std::string_view what = "tee simulator config";
    while (text.ends_with('\n')) { text.remove_suffix(1); } // a file may end in one
    Fields f{text, what};
    f.expect("format", config_format);
    f.expect_simulated();
    f.expect("platform", platform);
    Config out;
    out.instance_seed = f.hex<32>("instance_key");
    out.statement = f.text("statement");
    out.statement_signature = f.hex<64>("statement_signature");
    return canonical(std::move(out), f, text, what);
}

Result<Quote> decode_quote(std::string_view text)
{
    Fields f{text, "quote"};
    f.expect("format", quote_format);
    f.expect_simulated();
    Quote out;
    out.statement = f.text("statement");
    out.statement_signature = f.hex<64>("statement_signature");
    out.report_data = f.hex<64>("report_data");
    out.signature = f.hex<64>("signature");
    return canonical(std::move(out), f, text, "quote");
}

Bytes statement_message(std::string_view statement)
{
    auto out = crypto::copy(view(statement_format));
    crypto::append(out, view(":"));
    crypto::append(out, view(statement));
    return out;
}

Bytes quote_message(const Quote& quote)
{
    auto out = crypto::copy(view(quote_format));
    crypto::append(out, view(":"));
    crypto::append(out, crypto::sha512(quote.statement));
    crypto::append(out, quote.statement_signature);
    crypto::append(out, quote.report_data);
    return out;
}

constexpr std::string_view signer_purpose = "statement-signer";
constexpr std::string_view instance_purpose = "instance-key:";

} // namespace

Bytes32 host_public_key(const Bytes32& host_seed)
{
    auto seed = derive_seed(host_seed, signer_purpose, {});
    const auto key = crypto::ed25519_public(seed);
    crypto::wipe(seed);
    return key;
}

Result<std::string> make_simulator_config(const Bytes32& host_seed, const Claims& claims)
{
    return make_simulator_config(host_seed, claims, crypto::random_fixed<32>());
}

Result<std::string> make_simulator_config(const Bytes32& host_seed, const Claims& claims, const Bytes32& nonce)
{
    if (auto good = check(claims); !good) { return std::move(good).error().within("claims"); }
    auto signer = derive_seed(host_seed, signer_purpose, {});
    Config config;
    config.instance_seed = derive_seed(host_seed, instance_purpose, nonce);
    config.statement = encode(Statement{claims, nonce, crypto::ed25519_public(config.instance_seed)});
    config.statement_signature = crypto::ed25519_sign(signer, statement_message(config.statement));
    auto text = encode(config);
    crypto::wipe(signer);
    crypto::wipe(config.instance_seed);
    return text;
}

Result<Claims> peek_claims(std::string_view simulator_config)
{
    const auto config = decode_config(simulator_config);
    if (!config) { return config.error(); }
    const auto statement = decode_statement(config->statement);
    if (!statement) { return statement.error(); }
    return statement->claims;
}

Result<std::string> make_quote(std::string_view simulator_config, const Bytes64& report_data)
{
    auto config = decode_config(simulator_config);
    if (!config) { return std::move(config).error(); }
    Quote quote{config->statement, config->statement_signature, report_data, {}};
    quote.signature = crypto::ed25519_sign(config->instance_seed, quote_message(quote));
    crypto::wipe(config->instance_seed);
    return encode(quote);
}

Result<Verified> verify_quote(const Bytes32& host_public, std::string_view quote_text,
                              const Bytes64& expected_report_data)
{
    const auto quote = decode_quote(quote_text);
    if (!quote) { return quote.error(); }
    if (!crypto::ed25519_verify(host_public, statement_message(quote->statement), quote->statement_signature))
    {
        return Error{Errc::unauthenticated, "simulated quote: the statement is not signed by this host's VMM", {}, {}};
    }
    const auto statement = decode_statement(quote->statement);
    if (!statement) { return Error{statement.error()}.within("simulated quote"); }
    if (!crypto::ed25519_verify(statement->instance_key, quote_message(*quote), quote->signature))
    {
        return Error{Errc::unauthenticated, "simulated quote: not signed by the instance's key", {}, {}};
    }
    if (!crypto::constant_time_equal(quote->report_data, expected_report_data))
    {
        return Error{
            Errc::failed_precondition, "simulated quote: made for other report data, such as another TLS key", {}, {}};
    }
    return Verified{statement->claims, boot_info_of(statement->claims, host_public), quote->report_data};
}

Bytes64 ratls_report_data(View spki_der)
{
    auto input = crypto::copy(view("ratls-cert:"));
    crypto::append(input, spki_der);
    return crypto::sha512(input);
}

Result<RaTlsIdentity> make_ratls_identity(std::string_view simulator_config, std::string_view temp_ca_cert_pem,
                                          std::string_view temp_ca_key_pem)
{
    const auto ca_key = crypto::P256Key::from_pem(temp_ca_key_pem);
    if (!ca_key) { return Error{ca_key.error()}.within("temporary CA key"); }
    const auto key = crypto::P256Key::generate();
    const auto spki = key.spki_der();
    const auto quote = make_quote(simulator_config, ratls_report_data(spki));
    if (!quote) { return quote.error(); }
    crypto::CertSpec spec{.common_name = "RA-TLS TEMP Cert"};
    spec.client_auth = true;
    spec.extensions.push_back({std::string{crypto::oid::attestation}, crypto::copy(view(*quote))});
    auto cert = crypto::issue_cert(spec, spki, temp_ca_cert_pem, *ca_key);
    if (!cert) { return std::move(cert).error().within("temporary CA"); }
    return RaTlsIdentity{std::move(*cert), key.pkcs8_pem()};
}

Result<std::optional<Verified>> verify_ratls_certificate(const Bytes32& host_public, View cert_der)
{
    const auto cert = crypto::parse_cert_der(cert_der);
    if (!cert) { return Error{cert.error()}.within("client certificate"); }
    const auto quote = cert->extension(crypto::oid::attestation);
    if (!quote) { return Error{quote.error()}.within("client certificate"); }
    if (!*quote) { return std::optional<Verified>{}; }
    auto verified = verify_quote(host_public, crypto::text(**quote), ratls_report_data(cert->spki_der));
    if (!verified) { return std::move(verified).error(); }
    return std::optional<Verified>{std::move(*verified)};
}

} // namespace dstack::attestation
