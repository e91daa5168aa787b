#include "shared/crypto/x509.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/openssl.hpp"
#include <arpa/inet.h>
#include <ctime>
#include <openssl/pem.h>

namespace dstack::crypto
{

namespace
{

using Object = Owned<ASN1_OBJECT, ASN1_OBJECT_free>;
using Octets = Owned<ASN1_OCTET_STRING, ASN1_OCTET_STRING_free>;
using ExtensionOwned = Owned<X509_EXTENSION, X509_EXTENSION_free>;
using Names = Owned<GENERAL_NAMES, GENERAL_NAMES_free>;
using Store = Owned<X509_STORE, X509_STORE_free>;
using StoreContext = Owned<X509_STORE_CTX, X509_STORE_CTX_free>;

void free_stack(STACK_OF(X509) * stack) { sk_X509_pop_free(stack, X509_free); }
using Stack = Owned<STACK_OF(X509), free_stack>;

constexpr std::size_t max_der = std::size_t{1} << 20U;
constexpr std::int64_t ten_years = std::int64_t{3650} * 86400;

Error invalid(std::string message) { return {Errc::invalid_argument, std::move(message), {}, {}}; }

bool add_name(X509_NAME* name, const char* field, const std::string& value)
{
    return X509_NAME_add_entry_by_txt(name, field, MBSTRING_UTF8, reinterpret_cast<const unsigned char*>(value.data()),
                                      static_cast<int>(value.size()), -1, 0) == 1;
}

/// An extension from OpenSSL's own configuration syntax; only for constant texts.
bool add_standard(X509* cert, int nid, const char* value)
{
    const ExtensionOwned extension{X509V3_EXT_conf_nid(nullptr, nullptr, nid, value)};
    return extension && X509_add_ext(cert, extension.get(), -1) == 1;
}

/// Names come from configuration or the network, so they never pass through the configuration syntax.
Result<Done> add_alt_names(X509* cert, const CertSpec& spec)
{
    if (spec.dns_names.empty() && spec.ip_addresses.empty()) { return Done{}; }
    const Names names{sk_GENERAL_NAME_new_null()};
    const auto push = [&names](int type, const void* data, std::size_t size)
    {
        Owned<GENERAL_NAME, GENERAL_NAME_free> name{GENERAL_NAME_new()};
        ASN1_STRING* const text = ASN1_STRING_type_new(type == GEN_DNS ? V_ASN1_IA5STRING : V_ASN1_OCTET_STRING);
        ASN1_STRING_set(text, data, static_cast<int>(size));
        GENERAL_NAME_set0_value(name.get(), type, text);
        sk_GENERAL_NAME_push(names.get(), name.release());
    };
    for (const auto& dns : spec.dns_names)
    {
        for (const char c : dns)
        {
            if (c <= 0x20 || c > 0x7e) { return invalid("'" + dns + "' is no DNS name"); }
        }
        push(GEN_DNS, dns.data(), dns.size());
    }
    for (const auto& ip : spec.ip_addresses)
    {
        std::array<std::uint8_t, 16> address{};
        if (inet_pton(AF_INET, ip.c_str(), address.data()) == 1) { push(GEN_IPADD, address.data(), 4); }
        else if (inet_pton(AF_INET6, ip.c_str(), address.data()) == 1) { push(GEN_IPADD, address.data(), 16); }
        else { return invalid("'" + ip + "' is no IP address"); }
    }
    if (X509_add1_ext_i2d(cert, NID_subject_alt_name, names.get(), 0, X509V3_ADD_DEFAULT) != 1)
    {
        return openssl_error("subject alternative names");
    }
    return Done{};
}

Result<Done> add_custom(X509* cert, const Extension& custom)
{
    const Object object{OBJ_txt2obj(custom.oid.c_str(), 1)};
    const Octets inner{ASN1_OCTET_STRING_new()};
    const Octets outer{ASN1_OCTET_STRING_new()};
    if (!object || !inner || !outer) { return openssl_error("extension " + custom.oid); }
    ASN1_OCTET_STRING_set(inner.get(), custom.value.data(), static_cast<int>(custom.value.size()));
    unsigned char* encoded = nullptr;
    const int size = i2d_ASN1_OCTET_STRING(inner.get(), &encoded);
    if (size < 0) { return openssl_error("extension " + custom.oid); }
    ASN1_OCTET_STRING_set(outer.get(), encoded, size);
    OPENSSL_free(encoded);
    const ExtensionOwned extension{X509_EXTENSION_create_by_OBJ(nullptr, object.get(), 0, outer.get())};
    if (!extension || X509_add_ext(cert, extension.get(), -1) != 1) { return openssl_error("extension " + custom.oid); }
    return Done{};
}

/// Everything but the issuer and the signature.
Result<X509Owned> body(const CertSpec& spec, EVP_PKEY* subject_key)
{
    X509Owned cert{X509_new()};
    const auto serial = random_fixed<16>();
    const BigNumber number{BN_bin2bn(serial.data(), static_cast<int>(serial.size()), nullptr)};
    const auto not_after =
        spec.not_after != 0 ? spec.not_after : static_cast<std::int64_t>(std::time(nullptr)) + ten_years;
    auto* const subject = cert ? X509_get_subject_name(cert.get()) : nullptr;
    bool ok = subject != nullptr && X509_set_version(cert.get(), X509_VERSION_3) == 1 &&
              BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(cert.get())) != nullptr &&
              ASN1_TIME_set(X509_getm_notBefore(cert.get()), spec.not_before) != nullptr &&
              ASN1_TIME_set(X509_getm_notAfter(cert.get()), not_after) != nullptr &&
              X509_set_pubkey(cert.get(), subject_key) == 1;
    ok = ok && (spec.organization.empty() || add_name(subject, "O", spec.organization)) &&
         add_name(subject, "CN", spec.common_name);
    if (spec.ca_path_length)
    {
        const auto constraints = "critical,CA:TRUE,pathlen:" + std::to_string(*spec.ca_path_length);
        ok = ok && add_standard(cert.get(), NID_basic_constraints, constraints.c_str()) &&
             add_standard(cert.get(), NID_key_usage, "critical,digitalSignature,keyCertSign,cRLSign");
    }
    else { ok = ok && add_standard(cert.get(), NID_key_usage, "critical,digitalSignature"); }
    if (spec.server_auth || spec.client_auth)
    {
        const char* const usage = spec.server_auth && spec.client_auth ? "serverAuth,clientAuth"
                                  : spec.server_auth                   ? "serverAuth"
                                                                       : "clientAuth";
        ok = ok && add_standard(cert.get(), NID_ext_key_usage, usage);
    }
    if (!ok) { return openssl_error("certificate '" + spec.common_name + "'"); }
    if (auto done = add_alt_names(cert.get(), spec); !done) { return std::move(done).error(); }
    for (const auto& custom : spec.extensions)
    {
        if (auto done = add_custom(cert.get(), custom); !done) { return std::move(done).error(); }
    }
    return cert;
}

Result<std::string> sign(X509* cert, const P256Key& key)
{
    const auto pkey = to_pkey(key);
    const Bio out{BIO_new(BIO_s_mem())};
    if (X509_sign(cert, pkey.get(), EVP_sha256()) == 0 || !out || PEM_write_bio_X509(out.get(), cert) != 1)
    {
        return openssl_error("sign certificate");
    }
    return bio_text(out.get());
}

X509Owned decode(View der)
{
    const unsigned char* at = der.data();
    return X509Owned{d2i_X509(nullptr, &at, static_cast<long>(der.size()))};
}

std::string common_name(const X509_NAME* name)
{
    const int index = X509_NAME_get_index_by_NID(const_cast<X509_NAME*>(name), NID_commonName, -1);
    if (index < 0) { return {}; }
    unsigned char* utf8 = nullptr;
    const int size = ASN1_STRING_to_UTF8(&utf8, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(name, index)));
    if (size < 0) { return {}; }
    std::string out{reinterpret_cast<const char*>(utf8), static_cast<std::size_t>(size)};
    OPENSSL_free(utf8);
    return out;
}

std::int64_t unix_time(const ASN1_TIME* time)
{
    std::tm fields{};
    return ASN1_TIME_to_tm(time, &fields) == 1 ? static_cast<std::int64_t>(timegm(&fields)) : 0;
}

void read_alt_names(X509* cert, Certificate& out)
{
    const Names names{static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(cert, NID_subject_alt_name, nullptr, nullptr))};
    const int count = names ? sk_GENERAL_NAME_num(names.get()) : 0;
    for (int i = 0; i < count; ++i)
    {
        int type = 0;
        const auto* const value =
            static_cast<const ASN1_STRING*>(GENERAL_NAME_get0_value(sk_GENERAL_NAME_value(names.get(), i), &type));
        if (type != GEN_DNS && type != GEN_IPADD) { continue; }
        const View bytes{ASN1_STRING_get0_data(value), static_cast<std::size_t>(ASN1_STRING_length(value))};
        if (type == GEN_DNS) { out.dns_names.push_back(text(bytes)); }
        else if (bytes.size() == 4 || bytes.size() == 16)
        {
            std::array<char, INET6_ADDRSTRLEN> address{};
            inet_ntop(bytes.size() == 4 ? AF_INET : AF_INET6, bytes.data(), address.data(), address.size());
            out.ip_addresses.emplace_back(address.data());
        }
    }
}

Result<Certificate> describe(X509Owned cert)
{
    Certificate out;
    unsigned char* der = nullptr;
    const int size = i2d_X509(cert.get(), &der);
    if (size < 0) { return openssl_error("certificate"); }
    out.der.assign(der, der + size);
    OPENSSL_free(der);
    out.fingerprint = sha256(out.der);
    unsigned char* spki = nullptr;
    const int spki_size = i2d_X509_PUBKEY(X509_get_X509_PUBKEY(cert.get()), &spki);
    if (spki_size < 0) { return openssl_error("certificate's public key"); }
    out.spki_der.assign(spki, spki + spki_size);
    OPENSSL_free(spki);
    out.common_name = common_name(X509_get_subject_name(cert.get()));
    out.issuer_common_name = common_name(X509_get_issuer_name(cert.get()));
    out.is_ca = X509_check_ca(cert.get()) == 1;
    out.not_before = unix_time(X509_get0_notBefore(cert.get()));
    out.not_after = unix_time(X509_get0_notAfter(cert.get()));
    read_alt_names(cert.get(), out);
    return out;
}

} // namespace

Result<std::string> self_signed_cert(const CertSpec& spec, const P256Key& key)
{
    const auto pkey = to_pkey(key);
    auto cert = body(spec, pkey.get());
    if (!cert) { return std::move(cert).error(); }
    if (X509_set_issuer_name(cert->get(), X509_get_subject_name(cert->get())) != 1) { return openssl_error("issuer"); }
    return sign(cert->get(), key);
}

Result<std::string> issue_cert(const CertSpec& spec, View subject_spki, std::string_view issuer_pem,
                               const P256Key& issuer_key)
{
    auto issuer = parse_cert_pem(issuer_pem);
    if (!issuer) { return std::move(issuer).error().within("issuer"); }
    if (!matches(*issuer, issuer_key)) { return invalid("the issuer's certificate and key do not belong together"); }
    const unsigned char* at = subject_spki.data();
    const Pkey subject{d2i_PUBKEY(nullptr, &at, static_cast<long>(subject_spki.size()))};
    if (!subject) { return openssl_error("subject's public key"); }
    auto cert = body(spec, subject.get());
    if (!cert) { return std::move(cert).error(); }
    const auto issuer_cert = decode(issuer->der);
    if (!issuer_cert || X509_set_issuer_name(cert->get(), X509_get_subject_name(issuer_cert.get())) != 1)
    {
        return openssl_error("issuer");
    }
    return sign(cert->get(), issuer_key);
}

std::string Certificate::pem() const
{
    const Bio bio{BIO_new(BIO_s_mem())};
    if (!bio || PEM_write_bio(bio.get(), PEM_STRING_X509, "", der.data(), static_cast<long>(der.size())) <= 0)
    {
        std::abort();
    }
    return bio_text(bio.get());
}

Result<std::optional<Bytes>> Certificate::extension(std::string_view wanted) const
{
    const auto cert = decode(der);
    const Object object{OBJ_txt2obj(std::string{wanted}.c_str(), 1)};
    if (!cert || !object) { return openssl_error("extension"); }
    const int index = X509_get_ext_by_OBJ(cert.get(), object.get(), -1);
    if (index < 0) { return std::optional<Bytes>{}; }
    if (X509_get_ext_by_OBJ(cert.get(), object.get(), index) >= 0)
    {
        return invalid("certificate carries extension " + std::string{wanted} + " twice");
    }
    const auto* const data = X509_EXTENSION_get_data(X509_get_ext(cert.get(), index));
    const unsigned char* const begin = ASN1_STRING_get0_data(data);
    const unsigned char* at = begin;
    const int size = ASN1_STRING_length(data);
    const Octets inner{d2i_ASN1_OCTET_STRING(nullptr, &at, size)};
    if (!inner || at != begin + size)
    {
        return invalid("certificate's extension " + std::string{wanted} + " is not one octet string");
    }
    const unsigned char* const value = ASN1_STRING_get0_data(inner.get());
    return std::optional<Bytes>{Bytes(value, value + ASN1_STRING_length(inner.get()))};
}

Result<Certificate> parse_cert_der(View der)
{
    if (der.size() > max_der) { return invalid("certificate of more than 1 MiB"); }
    const unsigned char* at = der.data();
    X509Owned cert{d2i_X509(nullptr, &at, static_cast<long>(der.size()))};
    if (!cert) { return openssl_error("not a certificate"); }
    if (at != der.data() + der.size()) { return invalid("certificate with bytes after its end"); }
    return describe(std::move(cert));
}

Result<Certificate> parse_cert_pem(std::string_view pem)
{
    if (pem.size() > max_der) { return invalid("certificate of more than 1 MiB"); }
    const auto bio = memory_bio(view(pem));
    X509Owned cert{bio ? PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr) : nullptr};
    if (!cert) { return openssl_error("not a PEM certificate"); }
    return describe(std::move(cert));
}

Result<Done> verify_cert(const Certificate& leaf, const Certificate& ca, std::int64_t unix_time,
                         const std::vector<Certificate>& intermediates)
{
    const auto leaf_cert = decode(leaf.der);
    const auto ca_cert = decode(ca.der);
    const Stack between{sk_X509_new_null()};
    for (const auto& cert : intermediates)
    {
        if (auto decoded = decode(cert.der)) { sk_X509_push(between.get(), decoded.release()); }
    }
    const Store store{X509_STORE_new()};
    const StoreContext context{X509_STORE_CTX_new()};
    if (!leaf_cert || !ca_cert || !store || !context || X509_STORE_add_cert(store.get(), ca_cert.get()) != 1 ||
        X509_STORE_CTX_init(context.get(), store.get(), leaf_cert.get(), between.get()) != 1)
    {
        return openssl_error("verify certificate");
    }
    X509_STORE_CTX_set_time(context.get(), 0, unix_time);
    if (X509_verify_cert(context.get()) != 1)
    {
        const char* const reason = X509_verify_cert_error_string(X509_STORE_CTX_get_error(context.get()));
        return invalid("certificate '" + leaf.common_name + "' is not valid under '" + ca.common_name + "': " + reason);
    }
    return Done{};
}

bool matches(const Certificate& cert, const P256Key& key) { return constant_time_equal(cert.spki_der, key.spki_der()); }

} // namespace dstack::crypto
