#pragma once
#include <memory>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <string>

/// A key and a certificate, made for one test run.
struct Identity
{
    std::string cert_pem;
    std::string key_pem;
    std::string cert_der;
    std::shared_ptr<X509> cert;
    std::shared_ptr<EVP_PKEY> key;
};

inline std::string bio_text(BIO* bio)
{
    char* data = nullptr;
    const long size = BIO_get_mem_data(bio, &data);
    std::string text(data, static_cast<std::size_t>(size));
    BIO_free(bio);
    return text;
}

/// Signed by `issuer`, or by itself. `san` as OpenSSL writes it ("IP:127.0.0.1,DNS:a"); empty: a CA.
inline Identity make_identity(const std::string& name, const std::string& san, const Identity* issuer, long valid_seconds = 3600)
{
    Identity id;
    id.key.reset(EVP_EC_gen("P-256"), EVP_PKEY_free);
    id.cert.reset(X509_new(), X509_free);
    X509* cert = id.cert.get();
    static long serial = 1;
    X509_set_version(cert, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(cert), serial++);
    X509_gmtime_adj(X509_getm_notBefore(cert), -7200);
    X509_gmtime_adj(X509_getm_notAfter(cert), valid_seconds);
    X509_set_pubkey(cert, id.key.get());
    X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC,
                               reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
    X509_set_issuer_name(cert, X509_get_subject_name(issuer == nullptr ? cert : issuer->cert.get()));
    const auto extend = [&](int nid, const std::string& value)
    {
        X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, nid, value.c_str());
        X509_add_ext(cert, extension, -1);
        X509_EXTENSION_free(extension);
    };
    extend(NID_basic_constraints, san.empty() ? "critical,CA:TRUE" : "critical,CA:FALSE");
    if (!san.empty()) { extend(NID_subject_alt_name, san); }
    X509_sign(cert, issuer == nullptr ? id.key.get() : issuer->key.get(), EVP_sha256());
    BIO* bio = BIO_new(BIO_s_mem());
    PEM_write_bio_X509(bio, cert);
    id.cert_pem = bio_text(bio);
    bio = BIO_new(BIO_s_mem());
    PEM_write_bio_PrivateKey(bio, id.key.get(), nullptr, nullptr, 0, nullptr, nullptr);
    id.key_pem = bio_text(bio);
    bio = BIO_new(BIO_s_mem());
    i2d_X509_bio(bio, cert);
    id.cert_der = bio_text(bio);
    return id;
}
