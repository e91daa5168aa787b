#pragma once
#include "shared/http/parser.hpp"
#include "shared/http/server.hpp"
#include "shared/http/transport.hpp"
#include <list>
#include <optional>

namespace dstack::http
{

class Connection;

/// What all connections of one server share.
struct ServerShared
{
    ServerShared(Loop& l, Limits li, Handler h) : loop(l), limits(li), handler(std::move(h)) {}
    Loop& loop;
    Limits limits;
    Handler handler;
    PlanBody plan;
    ReadBuffer buffer{};
    std::function<void(Connection&)> on_gone; ///< forgets and destroys the connection
    bool draining = false;

    /// "Date: ...\r\n" of this second.
    std::string_view date_line();

  private:
    std::int64_t date_second_ = -1;
    std::string date_;
};

/// One client of the server: parses in the read callback, runs the handler as a task of its scope, answers in order.
class Connection final : public TransportSink, public BodyWriter, public BodyReader
{
  public:
    enum class Phase
    {
        handshake, ///< TLS
        idle,      ///< between requests
        head,
        body,
        handling,  ///< the handler runs
        streaming, ///< the response's stream function runs
        lingering, ///< all is said; waiting for the peer to close, so that it reads our last words
        closed,
    };
    Connection(ServerShared& shared, Transport::Kind kind);

    Transport& transport() { return transport_; }
    /// After uv_accept.
    void start(std::string peer, std::shared_ptr<TlsContext> tls);
    Phase phase() const { return phase_; }
    /// Since when it is in this phase, on the loop's clock.
    std::uint64_t since() const { return since_; }
    /// Called now and then: ends what took too long.
    void check_deadline(std::uint64_t now);
    /// The server stops: an idle connection closes, a busy one after its answer.
    void wind_down();
    /// No free place for this client: 503, without a request.
    void turn_away();
    void close();

    std::list<std::unique_ptr<Connection>>::iterator place;

    // BodyWriter, BodyReader
    Task<Result<Done>> write(std::string bytes) override;
    Task<Result<std::string>> read() override;

  private:
    void on_data(std::string_view bytes) override;
    void on_end(const Error* error) override;
    void on_drain() override;
    void on_secured() override;
    void on_closed() override;

    void enter(Phase phase, milliseconds limit);
    bool may_parse() const;
    std::size_t parse(std::string_view bytes);
    void pump();
    void resume_reading();
    void start_handler();
    Task<> serve(Request request);
    Task<> pump_later();
    void begin_response(Response& response);
    void end_response();
    void refuse(int status, std::string text);
    void append_head(const Response& response, bool chunked, bool close_after);
    bool flush();
    void linger();
    void end_with_peer();

    ServerShared& shared_;
    Transport transport_;
    RequestParser parser_;
    std::string peer_;
    std::string peer_certificate_der_;
    std::string input_;  ///< received, not parsed yet
    std::string output_; ///< answers of this turn
    std::optional<std::string> large_body_;
    Phase phase_ = Phase::idle;
    std::uint64_t since_ = 0;
    std::uint64_t deadline_ = 0;      ///< 0: none
    std::uint64_t taken_ = 0;         ///< of the transport, at the last check
    std::uint64_t stalled_since_ = 0; ///< 0: the peer takes what we send
    bool pumping_ = false;
    bool pump_scheduled_ = false;
    bool finish_after_ = false; ///< the connection ends after this answer
    bool peer_ended_ = false;
    bool peer_failed_ = false;
    bool stream_request_ = false; ///< the running handler reads the body itself
    bool chunked_ = false;
    bool is_head_ = false;
    bool http10_ = false;
    Event input_ready_;
    Event drained_;
    Scope scope_; ///< last: its tasks use the rest
};

} // namespace dstack::http
