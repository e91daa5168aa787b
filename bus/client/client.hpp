#pragma once
#include "bus/schema/types.hpp"
#include "shared/base/result.hpp"
#include "shared/runtime/scope.hpp"
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace dstack::bus
{

/// Position in the event stream, "epoch:sequence" on the wire. Default: before everything.
struct Cursor
{
    std::uint64_t epoch = 0;
    std::uint64_t sequence = 0;
};
std::string to_string(const Cursor& cursor);
Result<Cursor> cursor_from_string(std::string_view text);

/// W3C trace context of a call or event; made anew when empty.
struct Trace
{
    std::string traceparent{};
};
std::string make_traceparent();
/// A child span of `parent`; a new trace when `parent` is empty or malformed.
std::string child_traceparent(std::string_view parent);

/// An event as the journal has it.
struct EventRecord
{
    Cursor cursor;
    std::string id;
    std::string type;
    std::string source;
    std::string subject;
    std::string severity;
    std::string time; ///< RFC 3339 UTC, ms
    std::string traceparent;
    std::string data;     ///< JSON object: the fields of the schema
    std::string envelope; ///< the whole CloudEvent as JSON, one line
};

/// What a subscription yields besides events.
struct Gap
{
    std::uint64_t from = 0;
    std::uint64_t to = 0;
    std::string reason;
};
struct CaughtUp
{
    Cursor cursor;
};
using StreamItem = std::variant<EventRecord, CaughtUp, Gap>;

/// All conditions must hold; an empty one holds always.
struct Filter
{
    std::string type_prefix{}; ///< "vm." or "deploy.failed"
    std::string subject{};
    std::string source{};      ///< "vmm-local"
    std::string min_severity{}; ///< "warning"
};

/// Where a subscription begins.
struct From
{
    enum class Kind { now, beginning, cursor, time } kind = Kind::now;
    Cursor cursor{};            ///< the last event that was seen, for Kind::cursor
    std::uint64_t time_ms = 0;  ///< unix time, for Kind::time
};

struct CallOptions
{
    milliseconds deadline{10'000};
    std::string idempotency_key{}; ///< same key, same result, work done once
    std::string traceparent{};
};

/// What a serving service learns of a call.
struct CallContext
{
    std::string caller;          ///< "deployer" (a service) or "operator:uid=1000:pid=42", attested by the broker
    std::string idempotency_key;
    std::string traceparent;
    std::uint64_t deadline_ms = 0; ///< unix time
};

struct Join;

struct ClientConfig
{
    std::string directory; ///< holds commands.sock and events.sock: PREFIX/run/dstack/bus
    std::string service;   ///< name to register under; empty: an operator or a tool
    std::string version = DSTACK_VERSION;
    std::shared_ptr<const Join> remote{}; ///< instead of the directory: the bus of another host, over tcp; an operator only
};

class Subscription;

/// One process' connection to the bus. Reconnects by itself: while the broker restarts, calls wait until their
/// deadline and publishes are sent again with the same event id. All in one loop, one thread.
class Client
{
  public:
    Client(Loop& loop, ClientConfig config);
    Client(const Client&) = delete;
    Client& operator=(const Client&) = delete;
    ~Client();

    /// Connects and, for a service, registers; `serve` handlers must be set before.
    /// permission_denied when the broker refused the handshake or the name; unauthenticated when it refused the token or is
    /// not the one that the token was made by; unavailable after `deadline`. A refusal is known within a second.
    Task<Result<Done>> connect(milliseconds deadline);
    /// Says goodbye: no more requests will be delivered here. Replies of handlers that still run are sent first.
    Task<> disconnect(milliseconds deadline);

    /// No default for `options`, here or in publish: g++ 12 frees a class-type default argument of an awaited call twice.
    template <schema::CommandStruct C>
    Task<Result<typename C::Reply>> call(C command, CallOptions options)
    {
        std::string body = schema::to_json(std::move(command));
        auto reply = co_await call_raw(C::type.name, std::move(body), std::move(options));
        if (!reply) { co_return std::move(reply).error(); }
        co_return schema::from_json<typename C::Reply>(C::type.name, *reply);
    }

    template <schema::CommandStruct C>
    Task<Result<typename C::Reply>> call(C command)
    {
        return call(std::move(command), CallOptions{});
    }

    /// Durable when it returns: the broker has fsynced. Retries until `deadline`; the id makes that harmless.
    template <schema::EventStruct E>
    Task<Result<Cursor>> publish(E event, Trace trace, milliseconds deadline)
    {
        OutgoingEvent outgoing = make_event(std::move(event), std::move(trace));
        auto cursor = co_await publish_raw(std::move(outgoing), deadline);
        co_return cursor;
    }

    /// Serves a command: one coroutine per request, at most `max_in_flight` at once, the rest waits in order.
    /// Use with a member function: client.serve<LeaseReserve>([this](LeaseReserve request, CallContext context)
    /// { return reserve(std::move(request), std::move(context)); }) where reserve() is the coroutine.
    template <schema::CommandStruct C>
    void serve(std::function<Task<Result<typename C::Reply>>(C, CallContext)> handler, std::size_t max_in_flight = 64)
    {
        serve_raw(
            C::type.name,
            [handler = std::move(handler)](std::string body, CallContext context)
            { return answer<C>(handler, std::move(body), std::move(context)); },
            max_in_flight);
    }

    /// Every matching durable event exactly once and in order, from `from` on; see Subscription.
    Subscription subscribe(Filter filter, From from);

    /// An event ready to be sent or to be kept in an outbox.
    struct OutgoingEvent
    {
        std::string id;
        std::string type;
        std::string subject;
        std::string severity;
        std::uint64_t time_ms = 0;
        std::string traceparent;
        std::string data;
    };
    template <schema::EventStruct E>
    static OutgoingEvent make_event(E event, Trace trace = {})
    {
        OutgoingEvent out = blank_event(E::type, std::move(trace));
        out.subject = event.subject();
        if constexpr (requires { event.severity(); }) { out.severity = schema::to_string(event.severity()); }
        out.data = schema::to_json(std::move(event));
        return out;
    }
    Task<Result<Cursor>> publish_raw(OutgoingEvent event, milliseconds deadline);

    /// The untyped forms, for tools that pass JSON through.
    Task<Result<std::string>> call_raw(std::string_view command, std::string body, CallOptions options);
    using RawHandler = std::function<Task<Result<std::string>>(std::string body, CallContext context)>;
    void serve_raw(std::string_view command, RawHandler handler, std::size_t max_in_flight);

    Loop& loop();

    struct State;

  private:
    static OutgoingEvent blank_event(const schema::EventType& type, Trace trace);

    template <schema::CommandStruct C>
    static Task<Result<std::string>> answer(std::function<Task<Result<typename C::Reply>>(C, CallContext)> handler,
                                            std::string body, CallContext context)
    {
        auto request = schema::from_json<C>(C::type.name, body);
        if (!request) { co_return std::move(request).error(); }
        auto reply = co_await handler(std::move(*request), std::move(context));
        if (!reply) { co_return std::move(reply).error(); }
        co_return schema::to_json(std::move(*reply));
    }

    std::unique_ptr<State> state_;
};

/// One reader of the event stream. Must not outlive its client.
class Subscription
{
  public:
    Subscription(Subscription&&) noexcept;
    ~Subscription();
    /// The next item, waiting as long as it takes. CaughtUp comes once, when everything that was durable at the time
    /// of the switch to live has been yielded; Gap where the journal no longer has what was asked for.
    /// Errors only when the subscription cannot go on (refused); a broker restart is only latency.
    Task<Result<StreamItem>> next();
    /// Everything up to here was yielded, or did not match: where a later subscription may begin. Epoch 0: not known yet.
    Cursor position() const;

    struct State;

  private:
    friend class Client;
    explicit Subscription(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

} // namespace dstack::bus
