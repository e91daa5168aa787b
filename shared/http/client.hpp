#pragma once
#include "shared/http/message.hpp"
#include "shared/http/tls.hpp"
#include "shared/runtime/scope.hpp"
#include <memory>
#include <string>

namespace dstack::http
{

struct ClientRequest
{
    std::string method = "GET";
    /// "http://host:port/target", "https://...", or "unix:/run/x.sock:/target".
    std::string url{};
    Headers headers{}; ///< Host, Content-Length and Connection are added when missing
    std::string body{};
    milliseconds connect_timeout{3'000}; ///< name resolution, connect, TLS handshake
    milliseconds timeout{10'000};        ///< everything; for `open`: until the response's fields are there
    std::size_t max_header_bytes = 64 * 1024;
    std::size_t max_response_bytes = 4 * 1024 * 1024; ///< of the body, for `send`
    TlsClientConfig tls{};
};

struct ClientResponse
{
    int status = 0;
    Headers headers{};
    std::string body{};
    std::string peer_certificate_der{}; ///< the TLS server's leaf certificate
};

/// A response whose body is read as it comes. Destroying it closes the connection.
class ClientStream
{
  public:
    class Impl;
    explicit ClientStream(std::unique_ptr<Impl> impl);
    ClientStream(ClientStream&&) noexcept;
    ClientStream& operator=(ClientStream&&) noexcept;
    ~ClientStream();
    int status() const;
    const Headers& headers() const;
    const std::string& peer_certificate_der() const;
    /// The next bytes; empty at the end of the body; deadline_exceeded when nothing comes within `limit`.
    Task<Result<std::string>> read(milliseconds limit);

  private:
    std::unique_ptr<Impl> impl_;
};

/// One connection per request. The message of an error starts with its class, then names the URL without its query
/// ("connection_refused: http://127.0.0.1:9080/prpc/Status: nobody listens there"):
///   unavailable: "connection_refused: ...", "connection_reset: ...", "connection_closed: ...", "not_found: ..." (no such
///     socket), "unreachable: ...", "name_not_found: ...", "tls_handshake: ..."
///   deadline_exceeded: "connect_timeout: ...", "timeout: ..."
///   unauthenticated: "tls_certificate: ..." (the peer's certificate was refused, with OpenSSL's reason)
///   invalid_argument: "bad_url: ...", "bad_request: ...", "bad_tls_config: ..."
///   internal: "bad_response: ..."   resource_exhausted: "response_too_large: ..."
/// The status of a response is no error.
class Client
{
  public:
    explicit Client(Loop& loop);
    Task<Result<ClientResponse>> send(ClientRequest request);
    Task<Result<ClientStream>> open(ClientRequest request);

    /// The trust of earlier requests: reading the machine's roots takes a tenth of a second. Read again after an hour.
    class Trust;

  private:
    Loop& loop_;
    std::shared_ptr<Trust> trust_;
};

} // namespace dstack::http
