#pragma once
#include "shared/http/message.hpp"
#include "shared/http/tls.hpp"
#include "shared/runtime/scope.hpp"
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace dstack::http
{

struct Limits
{
    std::size_t max_header_bytes = 16 * 1024;     ///< request line and fields; over it: 431
    std::size_t max_headers = 100;                ///< fields of one request; over it: 431
    std::size_t max_body_bytes = 64 * 1024;       ///< over it: 413
    std::size_t max_connections = 1024;           ///< over it the longest waiting one is closed; all busy: 503
    std::size_t max_pipelined = 64;               ///< requests of one connection served in one loop turn
    std::size_t max_unsent_bytes = 256 * 1024;    ///< BodyWriter::write waits above it
    milliseconds idle_timeout{75'000};            ///< no request on a kept connection
    milliseconds header_timeout{10'000};          ///< TLS handshake; first byte of a request to the end of its fields
    milliseconds body_timeout{30'000};            ///< end of the fields to the end of the body
    milliseconds handler_timeout{60'000};         ///< the handler is destroyed and the answer is 503
    milliseconds write_timeout{30'000};           ///< the peer takes no byte of the response
};

/// How the body of one request is taken; decided when its fields are there.
struct BodyPlan
{
    std::size_t max_body_bytes = 0;
    bool stream = false; ///< start the handler now and give it Request::stream
};

using Handler = std::function<Task<Response>(Request)>;
using PlanBody = std::function<BodyPlan(const Request& head)>;

/// HTTP/1.1 over TCP, unix sockets and TLS. Handlers run in the server's scopes: destroying the server destroys them.
/// A server must not be destroyed by one of its own handlers.
class Server
{
  public:
    Server(Loop& loop, Limits limits, Handler handler);
    Server(const Server&) = delete;
    Server& operator=(const Server&) = delete;
    ~Server();

    /// Limits per route. Without it every body may have Limits::max_body_bytes and is read before the handler runs.
    void plan_body(PlanBody plan);

    /// May be called more than once, and mixed. `port` 0 takes any free one.
    Result<Done> listen_tcp(const std::string& address, std::uint16_t port);
    /// Replaces a socket that nobody listens on any more; `mode` as in 0660. The file is removed on close.
    Result<Done> listen_unix(const std::string& path, unsigned mode);
    /// A listening socket that was passed in (socket activation); the server owns it from here.
    Result<Done> listen_fd(int fd);

    /// From here on new connections speak TLS. Again at run time: what is connected keeps its certificate.
    Result<Done> use_tls(const TlsServerConfig& config);

    /// Of the first TCP listener; 0 without one.
    std::uint16_t port() const;
    std::size_t connections() const;

    /// Closes the listeners and idle connections.
    void stop_accepting();
    /// `stop_accepting`, then lets requests in flight end for at most `limit`, then closes what is left.
    Task<> drain(milliseconds limit);

    class Impl;

  private:
    std::unique_ptr<Impl> impl_;
};

} // namespace dstack::http
