#pragma once
#include "shared/base/result.hpp"
#include "shared/http/tls.hpp"
#include <memory>
#include <string>
#include <string_view>

struct ssl_ctx_st;
struct ssl_st;
struct bio_st;

namespace dstack::http
{

/// A parsed configuration, shared by the sessions made from it.
class TlsContext
{
  public:
    static Result<std::shared_ptr<TlsContext>> server(const TlsServerConfig& config);
    static Result<std::shared_ptr<TlsContext>> client(const TlsClientConfig& config);
    explicit TlsContext(ssl_ctx_st* raw) : raw_(raw) {}
    TlsContext(const TlsContext&) = delete;
    TlsContext& operator=(const TlsContext&) = delete;
    ~TlsContext();
    ssl_ctx_st* raw() const { return raw_; }

  private:
    ssl_ctx_st* raw_;
};

/// TLS as a pure transformation of bytes: `feed` what came from the peer, `read` plain text, `write` plain text, and
/// send `output` to the peer after each of these.
class TlsSession
{
  public:
    enum class Status
    {
        ok,
        need_input, ///< feed more first
        ended,      ///< the peer said close_notify
        failed,     ///< see `error`
    };
    static Result<std::unique_ptr<TlsSession>> server(std::shared_ptr<TlsContext> context);
    /// `verify_name`: the certificate must be for this DNS name or IP address; empty when nothing is verified.
    static Result<std::unique_ptr<TlsSession>> client(std::shared_ptr<TlsContext> context, const std::string& sni,
                                                      const std::string& verify_name);
    TlsSession(std::shared_ptr<TlsContext> context, ssl_st* raw, bio_st* in, bio_st* out);
    TlsSession(const TlsSession&) = delete;
    TlsSession& operator=(const TlsSession&) = delete;
    ~TlsSession();

    bool feed(std::string_view from_peer);
    Status handshake();
    /// At most `size` plain bytes; `*count` is set when ok.
    Status read(char* data, std::size_t size, std::size_t* count);
    bool write(std::string_view plain);
    void shutdown();
    /// Valid until the next call; `sent` says that it was taken.
    std::string_view output() const;
    void sent();
    /// "tls_certificate: certificate verify failed: self-signed certificate" or "tls_handshake: wrong version number".
    const Error& error() const { return error_; }
    std::string peer_certificate_der() const;

  private:
    Status failed(int result);
    std::shared_ptr<TlsContext> context_;
    ssl_st* raw_;
    bio_st* in_;  ///< owned by raw_
    bio_st* out_; ///< owned by raw_
    Error error_;
};

} // namespace dstack::http
