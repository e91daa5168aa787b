#include "shared/http/transport.hpp"
#include <algorithm>
#include <cstring>

namespace dstack::http
{

/// libuv's part of a connection: it outlives the Transport until its close callback.
struct Transport::Socket
{
    union
    {
        uv_tcp_t tcp;
        uv_pipe_t pipe;
        uv_stream_t stream;
        uv_handle_t handle;
    } uv{};
    Kind kind = Kind::tcp;
    Transport* owner = nullptr;
    uv_shutdown_t shutdown{};
};

namespace
{
struct Write
{
    uv_write_t request{};
    std::string head;
    std::string tail;
};

Transport::Socket* socket_of(uv_stream_t* stream) { return static_cast<Transport::Socket*>(stream->data); }

uv_buf_t buffer_of(std::string_view bytes)
{
    return uv_buf_init(const_cast<char*>(bytes.data()), static_cast<unsigned>(bytes.size())); // libuv only reads it
}
} // namespace

Transport::Transport(Loop& loop, Kind kind, TransportSink& sink, ReadBuffer& buffer)
    : socket_(new Socket), sink_(sink), buffer_(buffer)
{
    socket_->kind = kind;
    socket_->owner = this;
    const int status = kind == Kind::tcp ? uv_tcp_init(loop.raw(), &socket_->uv.tcp)
                                         : uv_pipe_init(loop.raw(), &socket_->uv.pipe, 0);
    if (status != 0) { std::abort(); } // only wrong arguments
    socket_->uv.handle.data = socket_;
}

Transport::~Transport()
{
    if (socket_ == nullptr) { return; }
    socket_->owner = nullptr;
    close();
}

uv_stream_t* Transport::stream() { return closed_ ? nullptr : &socket_->uv.stream; }
uv_tcp_t* Transport::tcp() { return closed_ ? nullptr : &socket_->uv.tcp; }
uv_pipe_t* Transport::pipe() { return closed_ ? nullptr : &socket_->uv.pipe; }

void Transport::close()
{
    if (closed_) { return; }
    closed_ = true;
    uv_close(&socket_->uv.handle,
             [](uv_handle_t* handle)
             {
                 const std::unique_ptr<Socket> socket{static_cast<Socket*>(handle->data)};
                 Transport* owner = socket->owner;
                 if (owner == nullptr) { return; }
                 owner->socket_ = nullptr;
                 owner->sink_.on_closed();
             });
}

bool Transport::start_reading()
{
    if (closed_ || ended_) { return false; }
    if (reading_) { return true; }
    reading_ = true;
    if (tls_ && !secured_ && !advance_tls()) { return false; }
    if (closed_ || !reading_) { return !closed_; }
    const int status = uv_read_start(
        &socket_->uv.stream,
        [](uv_handle_t* handle, std::size_t, uv_buf_t* out)
        {
            Transport* self = static_cast<Socket*>(handle->data)->owner;
            *out = self == nullptr ? uv_buf_init(nullptr, 0)
                                   : uv_buf_init(self->buffer_.bytes.data(), static_cast<unsigned>(self->buffer_.bytes.size()));
        },
        on_read);
    return status == 0;
}

void Transport::stop_reading()
{
    if (closed_ || !reading_) { return; }
    reading_ = false;
    uv_read_stop(&socket_->uv.stream);
}

void Transport::on_read(uv_stream_t* stream, ssize_t count, const uv_buf_t* buffer)
{
    Transport* self = socket_of(stream)->owner;
    if (self == nullptr || self->closed_ || count == 0) { return; }
    if (count > 0)
    {
        self->read_some({buffer->base, static_cast<std::size_t>(count)});
        return;
    }
    self->stop_reading();
    if (self->ended_) { return; }
    if (count == UV_EOF)
    {
        if (self->tls_ && !self->secured_)
        {
            self->fail({Errc::unavailable, "tls_handshake: the peer closed the connection", {}, {}});
            return;
        }
        self->ended_ = true;
        // TLS without close_notify is a truncation; only a reader of an unframed body needs to know.
        const Error truncated{Errc::aborted, "connection_closed: the peer ended without close_notify", {}, {}};
        self->sink_.on_end(self->tls_ ? &truncated : nullptr);
        return;
    }
    Error error = errno_error("connection_reset", -static_cast<int>(count));
    error.code = Errc::unavailable;
    self->fail(error);
}

void Transport::fail(const Error& error)
{
    if (ended_ || closed_) { return; }
    stop_reading();
    ended_ = true;
    sink_.on_end(&error);
}

void Transport::read_some(std::string_view bytes)
{
    if (!tls_)
    {
        sink_.on_data(bytes);
        return;
    }
    if (!tls_->feed(bytes))
    {
        fail({Errc::resource_exhausted, "tls: out of memory", {}, {}});
        return;
    }
    if (!secured_ && !advance_tls()) { return; }
    while (secured_ && !closed_ && !ended_)
    {
        std::size_t count = 0;
        const auto status = tls_->read(buffer_.plain.data(), buffer_.plain.size(), &count);
        if (!flush_tls()) { return; } // answers to key updates, alerts
        if (status == TlsSession::Status::need_input) { return; }
        if (status == TlsSession::Status::failed)
        {
            fail(tls_->error());
            return;
        }
        if (status == TlsSession::Status::ended)
        {
            stop_reading();
            ended_ = true;
            sink_.on_end(nullptr);
            return;
        }
        sink_.on_data({buffer_.plain.data(), count});
    }
}

bool Transport::advance_tls()
{
    const auto status = tls_->handshake();
    if (!flush_tls()) { return false; } // an alert goes out also when we refuse
    if (status == TlsSession::Status::need_input) { return true; }
    if (status != TlsSession::Status::ok)
    {
        fail(tls_->error());
        return false;
    }
    secured_ = true;
    sink_.on_secured();
    return !closed_;
}

bool Transport::flush_tls()
{
    const std::string_view output = tls_->output();
    if (output.empty()) { return true; }
    const bool ok = send(output, {}, nullptr);
    tls_->sent();
    return ok;
}

bool Transport::write(std::string_view bytes)
{
    if (!tls_) { return send(bytes, {}, nullptr); }
    if (closed_) { return false; }
    return tls_->write(bytes) && flush_tls();
}

bool Transport::write(std::string_view head, std::string body)
{
    if (!tls_) { return send(head, body, &body); }
    if (closed_) { return false; }
    return tls_->write(head) && tls_->write(body) && flush_tls();
}

/// `own_tail`: the string that `tail` views, to be moved instead of copied.
bool Transport::send(std::string_view head, std::string_view tail, std::string* own_tail)
{
    if (closed_) { return false; }
    const std::size_t total = head.size() + tail.size();
    if (total == 0) { return true; }
    queued_ += total;
    uv_stream_t* stream = &socket_->uv.stream;
    std::size_t taken = 0;
    if (uv_stream_get_write_queue_size(stream) == 0)
    {
        const std::array<uv_buf_t, 2> buffers{buffer_of(head), buffer_of(tail)};
        const int count = uv_try_write(stream, buffers.data(), tail.empty() ? 1 : 2);
        if (count < 0 && count != UV_EAGAIN)
        {
            queued_ -= total;
            return false;
        }
        taken = count > 0 ? static_cast<std::size_t>(count) : 0;
        if (taken == total) { return true; }
    }
    auto write = std::make_unique<Write>();
    const std::size_t of_head = std::min(taken, head.size());
    write->head = head.substr(of_head);
    const std::size_t of_tail = taken - of_head;
    std::string_view rest_of_tail = tail.substr(of_tail);
    if (own_tail != nullptr)
    {
        write->tail = std::move(*own_tail); // short strings move their bytes
        rest_of_tail = std::string_view{write->tail}.substr(of_tail);
    }
    else
    {
        write->tail = rest_of_tail;
        rest_of_tail = write->tail;
    }
    const std::array<uv_buf_t, 2> rest{buffer_of(write->head), buffer_of(rest_of_tail)};
    write->request.data = write.get();
    const int status = uv_write(&write->request, stream, rest.data(), 2,
                                [](uv_write_t* request, int result)
                                {
                                    const std::unique_ptr<Write> done{static_cast<Write*>(request->data)};
                                    Transport* self = socket_of(request->handle)->owner;
                                    if (self == nullptr || self->closed_) { return; }
                                    if (result < 0)
                                    {
                                        Error error = errno_error("connection_reset", -result);
                                        error.code = Errc::unavailable;
                                        self->fail(error);
                                    }
                                    if (!self->closed_) { self->sink_.on_drain(); }
                                });
    if (status != 0)
    {
        queued_ -= total - taken;
        return false;
    }
    static_cast<void>(write.release()); // until its callback
    return true;
}

std::size_t Transport::unsent() const
{
    return closed_ ? 0 : uv_stream_get_write_queue_size(&socket_->uv.stream);
}

void Transport::finish()
{
    if (closed_) { return; }
    if (tls_ && secured_)
    {
        tls_->shutdown();
        flush_tls();
    }
    if (socket_->shutdown.data != nullptr) { return; }
    socket_->shutdown.data = socket_;
    if (uv_shutdown(&socket_->shutdown, &socket_->uv.stream, [](uv_shutdown_t*, int) {}) != 0) { close(); }
}

} // namespace dstack::http
