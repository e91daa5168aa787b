#pragma once
#include "shared/base/result.hpp"
#include "shared/http/tls_session.hpp"
#include "shared/runtime/loop.hpp"
#include <array>
#include <memory>
#include <string>
#include <string_view>

namespace dstack::http
{

/// Where a loop's sockets read into: one buffer for all of them, because a read is consumed before the next begins.
struct ReadBuffer
{
    std::array<char, 64 * 1024> bytes;
    std::array<char, 16 * 1024> plain; ///< one TLS record
};

/// Told by a Transport, in libuv callbacks. `close` may be called from inside any of these.
class TransportSink
{
  public:
    virtual void on_data(std::string_view bytes) = 0;
    /// The peer will send no more: it ended (nullptr) or the connection failed. Called once.
    virtual void on_end(const Error* error) = 0;
    /// Unsent bytes have become fewer.
    virtual void on_drain() = 0;
    /// The TLS handshake is done.
    virtual void on_secured() = 0;
    /// After `close`, on a later turn; the sink may destroy the transport here.
    virtual void on_closed() = 0;

  protected:
    ~TransportSink() = default;
};

/// A connected stream socket (TCP or unix), with TLS or without. Destroying it closes the socket and silences the sink.
class Transport
{
  public:
    enum class Kind
    {
        tcp,
        unix_socket,
    };
    Transport(Loop& loop, Kind kind, TransportSink& sink, ReadBuffer& buffer);
    Transport(const Transport&) = delete;
    Transport& operator=(const Transport&) = delete;
    ~Transport();

    /// For uv_accept and uv_*_connect; nullptr once closed.
    uv_stream_t* stream();
    uv_tcp_t* tcp();
    uv_pipe_t* pipe();

    /// Before the first read. A client session sends its hello at `start_reading`.
    void secure(std::unique_ptr<TlsSession> session) { tls_ = std::move(session); }
    const TlsSession* tls() const { return tls_.get(); }

    bool start_reading();
    void stop_reading();
    /// Sends what the socket takes now and keeps the rest. False: the connection has failed.
    bool write(std::string_view bytes);
    /// The same; a long body is kept without a copy.
    bool write(std::string_view head, std::string body);
    /// Bytes that the socket has not taken yet.
    std::size_t unsent() const;
    /// Of all bytes that were ever sent, those that the socket took: rises while the peer reads.
    std::uint64_t taken() const { return queued_ - unsent(); }
    /// After what is unsent: no more bytes from here (TLS: close_notify first).
    void finish();
    void close();
    bool closed() const { return closed_; }

    struct Socket;

  private:
    void read_some(std::string_view bytes);
    bool advance_tls();
    bool flush_tls();
    bool send(std::string_view head, std::string_view tail, std::string* own_tail);
    void fail(const Error& error);
    static void on_read(uv_stream_t* stream, ssize_t count, const uv_buf_t* buffer);

    Socket* socket_; ///< freed by its close callback
    TransportSink& sink_;
    ReadBuffer& buffer_;
    std::unique_ptr<TlsSession> tls_;
    std::uint64_t queued_ = 0;
    bool reading_ = false;
    bool secured_ = false;
    bool ended_ = false;
    bool closed_ = false;
};

} // namespace dstack::http
