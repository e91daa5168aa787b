#include "shared/http/tls_session.hpp"
#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

namespace dstack::http
{

namespace
{
template <auto Free>
struct Freed
{
    template <class T>
    void operator()(T* object) const
    {
        Free(object);
    }
};
using Bio = std::unique_ptr<BIO, Freed<BIO_free>>;
using Certificate = std::unique_ptr<X509, Freed<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Freed<EVP_PKEY_free>>;

Error openssl_error(Errc code, std::string what)
{
    const unsigned long first = ERR_get_error();
    ERR_clear_error();
    const char* reason = first == 0 ? nullptr : ERR_reason_error_string(first);
    return {code, std::move(what) + ": " + (reason == nullptr ? "unknown reason" : reason), {}, {}};
}

Bio memory(const std::string& text) { return Bio{BIO_new_mem_buf(text.data(), static_cast<int>(text.size()))}; }

Error bad_config(std::string what) { return openssl_error(Errc::invalid_argument, "bad_tls_config: " + std::move(what)); }

/// A password prompt would block the process: encrypted keys are refused.
int no_password(char*, int, int, void*) { return 0; }

Result<Done> use_identity(SSL_CTX* context, const std::string& chain_pem, const std::string& key_pem)
{
    const Bio chain = memory(chain_pem);
    const Certificate leaf{PEM_read_bio_X509(chain.get(), nullptr, no_password, nullptr)};
    if (!leaf) { return bad_config("certificate chain"); }
    if (SSL_CTX_use_certificate(context, leaf.get()) != 1) { return bad_config("certificate"); }
    while (true)
    {
        Certificate next{PEM_read_bio_X509(chain.get(), nullptr, no_password, nullptr)};
        if (!next) { break; }
        if (SSL_CTX_add1_chain_cert(context, next.get()) != 1) { return bad_config("certificate chain"); }
    }
    ERR_clear_error(); // the end of the PEM text
    const Bio key_text = memory(key_pem);
    const Key key{PEM_read_bio_PrivateKey(key_text.get(), nullptr, no_password, nullptr)};
    if (!key) { return bad_config("private key"); }
    if (SSL_CTX_use_PrivateKey(context, key.get()) != 1) { return bad_config("private key does not fit the certificate"); }
    return Done{};
}

Result<Done> trust(SSL_CTX* context, const std::string& ca_pem, bool announce)
{
    const Bio text = memory(ca_pem);
    X509_STORE* store = SSL_CTX_get_cert_store(context);
    int count = 0;
    while (true)
    {
        const Certificate ca{PEM_read_bio_X509(text.get(), nullptr, no_password, nullptr)};
        if (!ca) { break; }
        if (X509_STORE_add_cert(store, ca.get()) != 1) { return bad_config("ca certificate"); }
        if (announce && SSL_CTX_add_client_CA(context, ca.get()) != 1) { return bad_config("ca certificate"); }
        ++count;
    }
    if (count == 0) { return bad_config("ca certificate"); }
    ERR_clear_error(); // the end of the PEM text
    return Done{};
}

Result<std::shared_ptr<TlsContext>> fresh(const SSL_METHOD* method)
{
    ERR_clear_error();
    SSL_CTX* raw = SSL_CTX_new(method);
    if (raw == nullptr) { return openssl_error(Errc::internal, "tls: new context"); }
    auto context = std::make_shared<TlsContext>(raw);
    if (SSL_CTX_set_min_proto_version(raw, TLS1_2_VERSION) != 1)
    {
        return openssl_error(Errc::internal, "tls: minimum version");
    }
    SSL_CTX_set_options(raw, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
    SSL_CTX_set_mode(raw, SSL_MODE_RELEASE_BUFFERS);
    return context;
}

int take_any(X509_STORE_CTX*, void*) { return 1; }

int choose_http1(SSL*, const unsigned char** out, unsigned char* out_size, const unsigned char* in, unsigned in_size, void*)
{
    static constexpr unsigned char ours[] = {8, 'h', 't', 't', 'p', '/', '1', '.', '1'};
    unsigned char* chosen = nullptr;
    if (SSL_select_next_proto(&chosen, out_size, ours, sizeof ours, in, in_size) != OPENSSL_NPN_NEGOTIATED)
    {
        return SSL_TLSEXT_ERR_NOACK;
    }
    *out = chosen;
    return SSL_TLSEXT_ERR_OK;
}

bool is_ip_address(const std::string& name)
{
    unsigned char parsed[16];
    return inet_pton(AF_INET, name.c_str(), parsed) == 1 || inet_pton(AF_INET6, name.c_str(), parsed) == 1;
}
} // namespace

TlsContext::~TlsContext() { SSL_CTX_free(raw_); }

Result<std::shared_ptr<TlsContext>> TlsContext::server(const TlsServerConfig& config)
{
    auto context = fresh(TLS_server_method());
    if (!context) { return context; }
    SSL_CTX* raw = (*context)->raw();
    if (auto ok = use_identity(raw, config.cert_chain_pem, config.key_pem); !ok) { return std::move(ok).error(); }
    using Ask = TlsServerConfig::ClientCertificate;
    const bool by_ca = config.client_certificate == Ask::request_ca || config.client_certificate == Ask::require_ca;
    if (by_ca)
    {
        if (auto ok = trust(raw, config.client_ca_pem, true); !ok) { return std::move(ok).error(); }
    }
    if (config.client_certificate == Ask::request_any)
    {
        SSL_CTX_set_verify(raw, SSL_VERIFY_PEER, nullptr);
        SSL_CTX_set_cert_verify_callback(raw, take_any, nullptr);
    }
    else if (by_ca)
    {
        const bool must = config.client_certificate == Ask::require_ca;
        SSL_CTX_set_verify(raw, SSL_VERIFY_PEER | (must ? SSL_VERIFY_FAIL_IF_NO_PEER_CERT : 0), nullptr);
    }
    // A resumed session would skip the certificate exchange that handlers judge.
    if (config.client_certificate != Ask::none)
    {
        SSL_CTX_set_session_cache_mode(raw, SSL_SESS_CACHE_OFF);
        SSL_CTX_set_options(raw, SSL_OP_NO_TICKET);
        SSL_CTX_set_num_tickets(raw, 0);
    }
    SSL_CTX_set_alpn_select_cb(raw, choose_http1, nullptr);
    return context;
}

Result<std::shared_ptr<TlsContext>> TlsContext::client(const TlsClientConfig& config)
{
    auto context = fresh(TLS_client_method());
    if (!context) { return context; }
    SSL_CTX* raw = (*context)->raw();
    switch (config.verify)
    {
        case TlsClientConfig::Verify::none: SSL_CTX_set_verify(raw, SSL_VERIFY_NONE, nullptr); break;
        case TlsClientConfig::Verify::system:
            if (SSL_CTX_set_default_verify_paths(raw) != 1) { return bad_config("system trust store"); }
            SSL_CTX_set_verify(raw, SSL_VERIFY_PEER, nullptr);
            break;
        case TlsClientConfig::Verify::ca:
            if (auto ok = trust(raw, config.ca_pem, false); !ok) { return std::move(ok).error(); }
            SSL_CTX_set_verify(raw, SSL_VERIFY_PEER, nullptr);
            break;
    }
    if (!config.cert_chain_pem.empty())
    {
        if (auto ok = use_identity(raw, config.cert_chain_pem, config.key_pem); !ok) { return std::move(ok).error(); }
    }
    return context;
}

TlsSession::TlsSession(std::shared_ptr<TlsContext> context, SSL* raw, BIO* in, BIO* out)
    : context_(std::move(context)), raw_(raw), in_(in), out_(out)
{
}

TlsSession::~TlsSession() { SSL_free(raw_); }

namespace
{
Result<std::unique_ptr<TlsSession>> make_session(std::shared_ptr<TlsContext> context)
{
    ERR_clear_error();
    SSL* raw = SSL_new(context->raw());
    if (raw == nullptr) { return openssl_error(Errc::internal, "tls: new session"); }
    BIO* in = BIO_new(BIO_s_mem());
    BIO* out = BIO_new(BIO_s_mem());
    if (in == nullptr || out == nullptr)
    {
        BIO_free(in);
        BIO_free(out);
        SSL_free(raw);
        return openssl_error(Errc::internal, "tls: new buffer");
    }
    BIO_set_mem_eof_return(in, -1); // empty means "later", not "end"
    SSL_set_bio(raw, in, out);
    return std::make_unique<TlsSession>(std::move(context), raw, in, out);
}
} // namespace

Result<std::unique_ptr<TlsSession>> TlsSession::server(std::shared_ptr<TlsContext> context)
{
    auto session = make_session(std::move(context));
    if (session) { SSL_set_accept_state((*session)->raw_); }
    return session;
}

Result<std::unique_ptr<TlsSession>> TlsSession::client(std::shared_ptr<TlsContext> context, const std::string& sni,
                                                       const std::string& verify_name)
{
    auto session = make_session(std::move(context));
    if (!session) { return session; }
    SSL* raw = (*session)->raw_;
    SSL_set_connect_state(raw);
    if (!sni.empty() && !is_ip_address(sni) && SSL_set_tlsext_host_name(raw, sni.c_str()) != 1)
    {
        return bad_config("server name");
    }
    if (!verify_name.empty())
    {
        X509_VERIFY_PARAM* param = SSL_get0_param(raw);
        const int ok = is_ip_address(verify_name) ? X509_VERIFY_PARAM_set1_ip_asc(param, verify_name.c_str())
                                                  : X509_VERIFY_PARAM_set1_host(param, verify_name.c_str(), 0);
        if (ok != 1) { return bad_config("server name"); }
    }
    return session;
}

bool TlsSession::feed(std::string_view from_peer)
{
    return BIO_write(in_, from_peer.data(), static_cast<int>(from_peer.size())) == static_cast<int>(from_peer.size());
}

TlsSession::Status TlsSession::failed(int result)
{
    const int kind = SSL_get_error(raw_, result);
    if (kind == SSL_ERROR_WANT_READ || kind == SSL_ERROR_WANT_WRITE) { return Status::need_input; }
    if (kind == SSL_ERROR_ZERO_RETURN) { return Status::ended; }
    const long verdict = SSL_get_verify_result(raw_);
    if (SSL_get_verify_mode(raw_) != SSL_VERIFY_NONE && verdict != X509_V_OK)
    {
        ERR_clear_error();
        error_ = {Errc::unauthenticated,
                  std::string{"tls_certificate: "} + X509_verify_cert_error_string(verdict),
                  {},
                  {}};
        return Status::failed;
    }
    error_ = openssl_error(Errc::unavailable, "tls_handshake");
    return Status::failed;
}

TlsSession::Status TlsSession::handshake()
{
    ERR_clear_error();
    const int result = SSL_do_handshake(raw_);
    return result == 1 ? Status::ok : failed(result);
}

TlsSession::Status TlsSession::read(char* data, std::size_t size, std::size_t* count)
{
    ERR_clear_error();
    const int result = SSL_read_ex(raw_, data, size, count);
    return result == 1 ? Status::ok : failed(result);
}

bool TlsSession::write(std::string_view plain)
{
    if (plain.empty()) { return true; }
    ERR_clear_error();
    std::size_t written = 0;
    if (SSL_write_ex(raw_, plain.data(), plain.size(), &written) == 1) { return true; } // memory takes all of it
    failed(0);
    return false;
}

void TlsSession::shutdown()
{
    ERR_clear_error();
    SSL_shutdown(raw_);
    ERR_clear_error();
}

std::string_view TlsSession::output() const
{
    char* data = nullptr;
    const long size = BIO_get_mem_data(out_, &data);
    return size > 0 ? std::string_view{data, static_cast<std::size_t>(size)} : std::string_view{};
}

void TlsSession::sent() { static_cast<void>(BIO_reset(out_)); }

std::string TlsSession::peer_certificate_der() const
{
    const Certificate certificate{SSL_get1_peer_certificate(raw_)};
    if (!certificate) { return {}; }
    const int size = i2d_X509(certificate.get(), nullptr);
    if (size <= 0) { return {}; }
    std::string der(static_cast<std::size_t>(size), '\0');
    auto* out = reinterpret_cast<unsigned char*>(der.data());
    i2d_X509(certificate.get(), &out);
    return der;
}

} // namespace dstack::http
