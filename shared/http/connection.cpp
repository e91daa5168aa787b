#include "shared/http/connection.hpp"
#include <algorithm>
#include <array>
#include <charconv>
#include <ctime>

namespace dstack::http
{

namespace
{
constexpr std::size_t max_unparsed_bytes = 64 * 1024;
constexpr std::size_t copied_body_bytes = 16 * 1024;
constexpr milliseconds linger_time{2'000};

void append_number(std::string& out, std::size_t value, int base = 10)
{
    std::array<char, 24> digits{};
    const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value, base).ptr;
    out.append(digits.data(), end);
}

bool has_body(int status) { return status >= 200 && status != 204 && status != 304; }

/// A handler's mistake must not become a second response.
bool safe(std::string_view text)
{
    return std::none_of(text.begin(), text.end(), [](char c) { return c == '\r' || c == '\n' || c == '\0'; });
}
} // namespace

std::string_view ServerShared::date_line()
{
    std::timespec now{};
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    if (now.tv_sec != date_second_)
    {
        date_second_ = now.tv_sec;
        std::tm parts{};
        gmtime_r(&now.tv_sec, &parts);
        std::array<char, 64> text{};
        const auto size = std::strftime(text.data(), text.size(), "Date: %a, %d %b %Y %H:%M:%S GMT\r\n", &parts);
        date_.assign(text.data(), size);
    }
    return date_;
}

Connection::Connection(ServerShared& shared, Transport::Kind kind)
    : shared_(shared), transport_(shared.loop, kind, *this, shared.buffer), parser_(shared.limits, &shared.plan),
      input_ready_(shared.loop), drained_(shared.loop), scope_(shared.loop)
{
}

void Connection::start(std::string peer, std::shared_ptr<TlsContext> tls)
{
    peer_ = std::move(peer);
    enter(Phase::idle, shared_.limits.idle_timeout);
    if (tls)
    {
        auto session = TlsSession::server(std::move(tls));
        if (!session)
        {
            close();
            return;
        }
        transport_.secure(std::move(*session));
        enter(Phase::handshake, shared_.limits.header_timeout);
    }
    if (!transport_.start_reading()) { close(); }
}

void Connection::enter(Phase phase, milliseconds limit)
{
    phase_ = phase;
    since_ = uv_now(shared_.loop.raw());
    deadline_ = limit.count() > 0 ? since_ + static_cast<std::uint64_t>(limit.count()) : 0;
}

void Connection::close()
{
    if (phase_ == Phase::closed) { return; }
    phase_ = Phase::closed;
    transport_.close(); // on_closed follows on a later turn, outside of our own tasks
}

void Connection::on_closed() { shared_.on_gone(*this); }

void Connection::on_secured()
{
    peer_certificate_der_ = transport_.tls()->peer_certificate_der();
    enter(Phase::idle, shared_.limits.idle_timeout);
}

// --- input

bool Connection::may_parse() const
{
    switch (phase_)
    {
        case Phase::idle:
        case Phase::head:
        case Phase::body: return transport_.unsent() <= shared_.limits.max_unsent_bytes;
        case Phase::handling: return stream_request_ && !parser_.complete() && !parser_.failed();
        case Phase::handshake:
        case Phase::streaming:
        case Phase::lingering:
        case Phase::closed: return false;
    }
    return false;
}

void Connection::on_data(std::string_view bytes)
{
    if (phase_ == Phase::lingering || phase_ == Phase::closed) { return; }
    if (input_.empty())
    {
        const std::size_t used = parse(bytes);
        if (phase_ == Phase::closed || phase_ == Phase::lingering) { return; }
        input_.append(bytes.substr(used));
    }
    else
    {
        input_.append(bytes);
        pump();
        if (phase_ == Phase::closed) { return; }
    }
    if (input_.size() > max_unparsed_bytes || parser_.streamed().size() > max_unparsed_bytes) { transport_.stop_reading(); }
}

void Connection::on_end(const Error* error)
{
    peer_ended_ = true;
    peer_failed_ = error != nullptr && error->code != Errc::aborted;
    input_ready_.set();
    // A handler's work is not cut in the middle because nobody waits for its answer; a stream's is.
    if (phase_ == Phase::handling) { return; }
    if (peer_failed_ || phase_ == Phase::streaming) { close(); }
    else if (phase_ == Phase::lingering && transport_.unsent() == 0) { close(); }
    else { end_with_peer(); }
}

/// Parses what is in input_ until an answer has to be waited for.
void Connection::pump()
{
    if (pumping_ || input_.empty()) { return; }
    // Taken out, because a handler that answers at once leads back here.
    std::string bytes = std::move(input_);
    input_.clear();
    const std::size_t used = parse(bytes);
    if (phase_ == Phase::closed || phase_ == Phase::lingering) { return; }
    bytes.erase(0, used);
    input_ = std::move(bytes);
    resume_reading();
    end_with_peer();
}

void Connection::resume_reading()
{
    if (!peer_ended_ && input_.size() <= max_unparsed_bytes && parser_.streamed().size() <= max_unparsed_bytes)
    {
        transport_.start_reading();
    }
}

std::size_t Connection::parse(std::string_view bytes)
{
    if (pumping_) { return 0; }
    pumping_ = true;
    std::size_t used = 0;
    std::size_t served = 0;
    while (used < bytes.size() && may_parse())
    {
        if (served >= shared_.limits.max_pipelined && phase_ == Phase::idle)
        {
            if (!pump_scheduled_)
            {
                pump_scheduled_ = true;
                scope_.spawn(pump_later());
            }
            break;
        }
        used += parser_.feed(bytes.substr(used));
        if (parser_.failed())
        {
            if (phase_ == Phase::handling) // a streamed body went wrong: its reader hears of it and answers
            {
                finish_after_ = true;
                input_ready_.set();
            }
            else { refuse(parser_.error_status(), parser_.error_text()); }
            used = bytes.size();
            break;
        }
        if (phase_ == Phase::handling)
        {
            enter(Phase::handling, parser_.complete() ? shared_.limits.handler_timeout : shared_.limits.body_timeout);
            input_ready_.set();
            if (parser_.streamed().size() > max_unparsed_bytes) { break; }
            continue;
        }
        if (parser_.head_done() && phase_ != Phase::body)
        {
            enter(Phase::body, shared_.limits.body_timeout);
            if (parser_.expects_continue() && !parser_.complete()) { output_.append("HTTP/1.1 100 Continue\r\n\r\n"); }
            if (parser_.plan().stream)
            {
                stream_request_ = true;
                ++served;
                start_handler();
                continue;
            }
        }
        else if (phase_ == Phase::idle && parser_.started()) { enter(Phase::head, shared_.limits.header_timeout); }
        if (parser_.complete())
        {
            ++served;
            start_handler();
        }
    }
    pumping_ = false;
    if (!flush()) { close(); }
    return used;
}

Task<> Connection::pump_later()
{
    co_await next_turn(shared_.loop);
    pump_scheduled_ = false;
    pump();
}

// --- handling

void Connection::start_handler()
{
    Request request = std::move(parser_.request());
    request.peer = peer_;
    request.peer_certificate_der = peer_certificate_der_;
    request.tls = transport_.tls() != nullptr;
    is_head_ = parser_.is_head();
    http10_ = parser_.http10();
    if (!parser_.keep_alive() || shared_.draining) { finish_after_ = true; }
    if (stream_request_)
    {
        request.stream = this;
        enter(Phase::handling, shared_.limits.body_timeout);
    }
    else { enter(Phase::handling, shared_.limits.handler_timeout); }
    scope_.spawn(serve(std::move(request)));
}

Task<> Connection::serve(Request request)
{
    auto task = shared_.handler(std::move(request));
    auto response = co_await task;
    if (phase_ == Phase::closed) { co_return; }
    begin_response(response);
    if (phase_ == Phase::streaming)
    {
        if (!flush())
        {
            close();
            co_return;
        }
        auto body = response.stream(*this);
        auto written = co_await body;
        if (phase_ == Phase::closed) { co_return; }
        if (!written)
        {
            close();
            co_return;
        }
        if (chunked_) { output_.append("0\r\n\r\n"); }
    }
    end_response();
}

Task<Result<Done>> Connection::write(std::string bytes)
{
    const Error gone{Errc::aborted, "connection_closed: the peer went away", {}, {}};
    if (phase_ != Phase::streaming) { co_return gone; }
    if (bytes.empty()) { co_return Done{}; }
    if (chunked_)
    {
        append_number(output_, bytes.size(), 16);
        output_.append("\r\n");
        output_.append(bytes);
        output_.append("\r\n");
    }
    else { output_.append(bytes); }
    if (!flush())
    {
        close();
        co_return gone;
    }
    while (phase_ == Phase::streaming && transport_.unsent() > shared_.limits.max_unsent_bytes)
    {
        drained_.reset();
        co_await drained_.wait();
    }
    if (phase_ != Phase::streaming) { co_return gone; }
    co_return Done{};
}

Task<Result<std::string>> Connection::read()
{
    const Error gone{Errc::aborted, "connection_closed: the peer went away before the end of the body", {}, {}};
    while (parser_.streamed().empty() && !parser_.complete())
    {
        if (parser_.failed())
        {
            const Errc code = parser_.error_status() == 413 ? Errc::resource_exhausted : Errc::invalid_argument;
            const Error bad{code, parser_.error_text(), {}, {}};
            co_return bad;
        }
        if (phase_ != Phase::handling || !stream_request_ || (peer_ended_ && input_.empty())) { co_return gone; }
        input_ready_.reset();
        pump();
        if (!input_ready_.is_set()) { co_await input_ready_.wait(); }
    }
    std::string bytes = std::move(parser_.streamed());
    parser_.streamed().clear();
    if (!parser_.complete()) { enter(Phase::handling, shared_.limits.body_timeout); }
    resume_reading();
    co_return bytes;
}

void Connection::begin_response(Response& response)
{
    if (stream_request_ && !parser_.complete()) { finish_after_ = true; } // the rest of the body would be the next request
    const bool streams = static_cast<bool>(response.stream) && has_body(response.status);
    chunked_ = streams && !http10_;
    if (streams && http10_) { finish_after_ = true; }
    append_head(response, streams, finish_after_);
    if (streams && !is_head_)
    {
        enter(Phase::streaming, milliseconds{0});
        return;
    }
    if (streams || is_head_ || !has_body(response.status)) { return; }
    if (response.body.size() <= copied_body_bytes) { output_.append(response.body); }
    else
    {
        const bool ok = transport_.write(output_, std::move(response.body));
        output_.clear();
        if (!ok) { close(); }
    }
}

void Connection::end_response()
{
    if (phase_ == Phase::closed) { return; }
    stream_request_ = false;
    if (finish_after_)
    {
        input_.clear();
        linger();
        return;
    }
    parser_.next();
    enter(Phase::idle, shared_.limits.idle_timeout);
    if (pumping_) { return; } // parse() goes on, and flushes
    if (!flush())
    {
        close();
        return;
    }
    pump();
    end_with_peer();
}

/// No more requests can come: ends the connection when all that came are answered.
void Connection::end_with_peer()
{
    const bool waits = phase_ == Phase::handshake || phase_ == Phase::idle || phase_ == Phase::head || phase_ == Phase::body;
    if (peer_ended_ && input_.empty() && waits) { linger(); }
}

void Connection::append_head(const Response& response, bool chunked, bool close_after)
{
    if (response.status == 200) { output_.append("HTTP/1.1 200 OK\r\n"); }
    else
    {
        output_.append("HTTP/1.1 ");
        append_number(output_, static_cast<std::size_t>(std::clamp(response.status, 200, 599)));
        output_.push_back(' ');
        output_.append(reason_phrase(response.status));
        output_.append("\r\n");
    }
    for (const Header& header : response.headers)
    {
        if (!safe(header.name) || !safe(header.value) || iequals(header.name, "content-length") ||
            iequals(header.name, "transfer-encoding") || iequals(header.name, "connection"))
        {
            continue;
        }
        output_.append(header.name).append(": ").append(header.value).append("\r\n");
    }
    if (has_body(response.status))
    {
        if (chunked && !http10_) { output_.append("Transfer-Encoding: chunked\r\n"); }
        else if (!chunked)
        {
            output_.append("Content-Length: ");
            append_number(output_, response.body.size());
            output_.append("\r\n");
        }
    }
    output_.append(shared_.date_line());
    if (close_after) { output_.append("Connection: close\r\n"); }
    else if (http10_) { output_.append("Connection: keep-alive\r\n"); }
    output_.append("\r\n");
}

// --- output and the end

bool Connection::flush()
{
    if (phase_ == Phase::closed) { return true; }
    if (output_.empty()) { return true; }
    const bool ok = transport_.write(output_);
    output_.clear();
    return ok;
}

void Connection::on_drain()
{
    if (phase_ == Phase::closed) { return; }
    if (transport_.unsent() <= shared_.limits.max_unsent_bytes)
    {
        drained_.set();
        pump();
    }
    if (peer_ended_ && transport_.unsent() == 0 && (phase_ == Phase::lingering || phase_ == Phase::idle)) { close(); }
}

void Connection::refuse(int status, std::string text)
{
    Response response = text_response(status, std::move(text) + "\n");
    http10_ = parser_.http10();
    is_head_ = false;
    append_head(response, false, true);
    output_.append(response.body);
    input_.clear();
    linger();
}

void Connection::linger()
{
    if (phase_ == Phase::closed || phase_ == Phase::lingering) { return; }
    if (!flush())
    {
        close();
        return;
    }
    if (peer_ended_ && transport_.unsent() == 0)
    {
        transport_.finish();
        close();
        return;
    }
    enter(Phase::lingering, linger_time);
    transport_.finish();
    transport_.start_reading();
}

void Connection::turn_away()
{
    Response response = text_response(503, "too many connections\n");
    response.headers.add("Retry-After", "1");
    append_head(response, false, true);
    output_.append(response.body);
    linger();
}

void Connection::wind_down()
{
    if (phase_ == Phase::idle && transport_.unsent() == 0) { close(); }
    else { finish_after_ = true; }
}

void Connection::check_deadline(std::uint64_t now)
{
    if (phase_ == Phase::closed) { return; }
    if (transport_.unsent() > 0) // the peer's turn: it has to take something now and then
    {
        const std::uint64_t taken = transport_.taken();
        if (taken != taken_ || stalled_since_ == 0)
        {
            taken_ = taken;
            stalled_since_ = now;
        }
        else if (now - stalled_since_ >= static_cast<std::uint64_t>(shared_.limits.write_timeout.count()))
        {
            close();
            return;
        }
        if (phase_ == Phase::idle || phase_ == Phase::lingering)
        {
            const auto limit = phase_ == Phase::idle ? shared_.limits.idle_timeout : linger_time;
            deadline_ = now + static_cast<std::uint64_t>(limit.count());
        }
    }
    else { stalled_since_ = 0; }
    if (deadline_ == 0 || now < deadline_) { return; }
    switch (phase_)
    {
        case Phase::handshake:
        case Phase::idle:
        case Phase::lingering: close(); return;
        case Phase::head: refuse(408, "the request's fields took too long"); return;
        case Phase::body: refuse(408, "the request's body took too long"); return;
        case Phase::handling:
            scope_.cancel();
            pump_scheduled_ = false;
            finish_after_ = true;
            refuse(503, "the request took too long");
            return;
        case Phase::streaming:
        case Phase::closed: return;
    }
}

} // namespace dstack::http
