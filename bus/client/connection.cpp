#include "bus/client/connection.hpp"
#include "bus/client/join.hpp"
#include "shared/base/time.hpp"
#include "shared/crypto/curve25519.hpp"
#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

namespace dstack::bus
{

namespace
{
constexpr int batch_per_turn = 256;
constexpr std::uint64_t tick_ms = 2000;
constexpr std::size_t max_queued_requests = 1024;
constexpr std::size_t max_kept_replies = 4096;
constexpr std::size_t max_outstanding = 16'384;
constexpr int silent_ticks_limit = 4; ///< each began with a ping: nothing came for 8 s
constexpr int closes_that_mean_no = 3; ///< one or two may be a broker that just ends
} // namespace

Client::State::State(Loop& l, ClientConfig c)
    : loop(l), config(std::move(c)), commands(context, zmq::socket_type::dealer), monitor(context, zmq::socket_type::pair),
      live(context, zmq::socket_type::sub), changed(l), scope(l)
{
}

Client::State::~State()
{
    scope.cancel();
    commands_watch.reset();
    monitor_watch.reset();
    live_watch.reset();
    if (tick) { zmq_socket_monitor(commands.handle(), nullptr, 0); }
}

void Client::State::start()
{
    if (tick) { return; }
    prepare(commands);
    commands.set(zmq::sockopt::linger, 100);
    commands.set(zmq::sockopt::immediate, true);
    commands.set(zmq::sockopt::sndhwm, 20'000);
    zmq_socket_monitor(commands.handle(), "inproc://commands-monitor",
                       ZMQ_EVENT_CONNECTED | ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                           ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_CLOSED);
    monitor.connect("inproc://commands-monitor");
    monitor_watch = std::make_unique<ZmqWatch>(loop, monitor, [this] { on_monitor(); });
    commands_watch = std::make_unique<ZmqWatch>(loop, commands, [this] { on_message(); });
    commands.connect(commands_address());
    tick = make_uv<uv_timer_t>([&](uv_timer_t* h) { return uv_timer_init(loop.raw(), h); });
    tick->data = this;
    uv_timer_start(
        tick.get(), [](uv_timer_t* h) { static_cast<State*>(h->data)->on_tick(); }, tick_ms, tick_ms);
}

void Client::State::prepare(zmq::socket_t& socket) const
{
    socket.set(zmq::sockopt::reconnect_ivl, 10);
    socket.set(zmq::sockopt::reconnect_ivl_max, 300);
    socket.set(zmq::sockopt::handshake_ivl, 5000);
    socket.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(wire::max_message_bytes));
    if (!config.remote) { return; }
    const Join& join = *config.remote;
    const auto set = [&socket](int option, const std::array<std::uint8_t, 32>& key) { zmq_setsockopt(socket.handle(), option, key.data(), key.size()); };
    set(ZMQ_CURVE_SERVERKEY, join.server_key);
    set(ZMQ_CURVE_SECRETKEY, join.secret_key);
    set(ZMQ_CURVE_PUBLICKEY, crypto::x25519_public(join.secret_key));
    socket.set(zmq::sockopt::ipv6, join.endpoint.ipv6());
    socket.set(zmq::sockopt::handshake_ivl, 3000); // a peer that accepts and then says nothing
    socket.set(zmq::sockopt::heartbeat_ivl, 5000); // a path that swallows what is sent
    socket.set(zmq::sockopt::heartbeat_timeout, 10'000);
}

std::string Client::State::commands_address() const
{
    return config.remote ? config.remote->endpoint.commands() : "ipc://" + config.directory + "/commands.sock";
}

std::string Client::State::events_address() const
{
    return config.remote ? config.remote->endpoint.events() : "ipc://" + config.directory + "/events.sock";
}

std::string Client::State::where() const
{
    return config.remote ? "the bus at " + config.remote->endpoint.text() : "the bus in " + config.directory;
}

Error Client::State::absent(std::string what) const
{
    if (!what.empty()) { what += ": "; }
    if (config.remote)
    {
        const bool mute = shaking_hands || silent_closes > 0;
        return Error{Errc::unavailable, what + where() + (mute ? " accepts the connection, and then does not speak as a bus" : " does not answer"), "is that its address, does it listen on tcp, does a firewall let this port and the next one through?", {}};
    }
    if (deaf || shaking_hands)
    {
        return Error{Errc::unavailable, what + where() + " does not answer, though its process is there",
                     "is it stopped, or does its disk hang? `systemctl status dstack-bus`; a restart loses nothing that was acknowledged", {}};
    }
    return Error{Errc::unavailable, what + where() + " is not there", "start it: `dstackup dev up`, or `systemctl start dstack.target`", {}};
}

void Client::State::on_monitor()
{
    wire::Frames frames;
    while (wire::receive(monitor, frames))
    {
        if (frames.empty() || frames[0].size() < 6) { continue; }
        std::uint16_t event = 0;
        std::int32_t value = 0;
        std::memcpy(&event, frames[0].data(), sizeof event);
        std::memcpy(&value, static_cast<const char*>(frames[0].data()) + sizeof event, sizeof value);
        const bool was_shaking = std::exchange(shaking_hands, event == ZMQ_EVENT_CONNECTED);
        if (event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED)
        {
            silent_closes = 0;
            send_hello();
        }
        else if (event == ZMQ_EVENT_CONNECTED) { unanswered_knocks = 0; }
        else if (event == ZMQ_EVENT_CLOSED)
        {
            ++unanswered_knocks;
            changed.set();
        }
        else if (event == ZMQ_EVENT_DISCONNECTED)
        {
            // ZeroMQ says nothing of its own about a peer that does not speak ZMTP at all, and does not come back to it.
            if (was_shaking && config.remote) { on_handshake_failure(ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL, 0); }
            lost();
        }
        else { on_handshake_failure(event, value); }
    }
}

void Client::State::on_handshake_failure(int event, int value)
{
    if (event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH)
    {
        session_over = true;
        if (!config.remote)
        {
            refused(Error{Errc::permission_denied, where() + " refused this user",
                          "be a member of the dstack group, or root; `dstack events --type bus.` shows refusals to those who may", {}});
            return;
        }
        const Join& join = *config.remote;
        const std::string next = "have a new one made on that host: `dstackup token create`; `dstackup token list` there shows those that are";
        const bool over = join.expires_ms != 0 && join.expires_ms <= unix_ms();
        refused(Error{Errc::unauthenticated,
                      over ? "the token " + join.name + " expired at " + rfc3339(join.expires_ms)
                           : where() + " refused the token " + join.name + ": it was revoked, or is not known there",
                      next, {}});
        return;
    }
    const std::string other_server = where() + " does not have the key that the token was made for";
    if (event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL)
    {
        session_over = true;
        const bool mechanism = value == ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH;
        refused(Error{Errc::unauthenticated,
                      mechanism ? where() + (config.remote ? " does not encrypt: that is no dstack bus over tcp" : " wants a key: that is no local bus")
                                : other_server + ", or is no dstack bus",
                      config.remote ? "check --host, or have a new token made on that host: `dstackup token create`" : "check --prefix", {}});
        return;
    }
    // The peer closed in the middle of the handshake. A CURVE server does so when it cannot read what was encrypted for
    // another key; it says nothing to a stranger.
    if (!config.remote || ++silent_closes < closes_that_mean_no) { return; }
    refused(Error{Errc::unauthenticated, other_server + " (or is no dstack bus)",
                  "it was installed anew, or something stands in between; have a new token made on that host: `dstackup token create`", {}});
}

void Client::State::refused(Error error)
{
    refusal = std::move(error);
    refused_for_good = true;
    welcome = false;
    for (auto& [id, request] : outstanding)
    {
        if (request->answer || request->error) { continue; }
        request->error = *refusal;
        request->done.set();
    }
    for (LiveInbox* inbox : inboxes) { inbox->wake.set(); }
    changed.set();
}

void Client::State::reconnect()
{
    session_over = false;
    silent_closes = 0;
    const std::string address = commands_address();
    zmq_disconnect(commands.handle(), address.c_str()); // may be gone already
    commands.connect(address);
    if (!live_watch) { return; }
    const std::string events = events_address();
    zmq_disconnect(live.handle(), events.c_str());
    live.connect(events);
}

void Client::State::send_hello()
{
    refusal.reset();
    refused_for_good = false;
    transmit(wire::joined({wire::version, wire::hello, config.service, config.version}));
}

void Client::State::welcomed()
{
    welcome = true;
    goodbye = false;
    deaf = false;
    silent_ticks = 0;
    std::vector<Outstanding*> in_order;
    for (const auto& [id, request] : outstanding) { in_order.push_back(request); }
    std::sort(in_order.begin(), in_order.end(), [](const Outstanding* a, const Outstanding* b) { return a->number < b->number; });
    for (Outstanding* request : in_order)
    {
        if (request->sent && !request->repeatable)
        {
            request->error = Error{Errc::unavailable, "the bus restarted while the command was on its way; its outcome is not known", {}, {}};
            request->done.set();
            continue;
        }
        request->sent = true;
        transmit(request->line);
    }
    for (const std::string& reply : std::exchange(replies, {})) { transmit(reply); }
    changed.set();
}

void Client::State::lost()
{
    welcome = false;
    changed.set();
}

void Client::State::transmit(std::string_view line)
{
    wire::Frames frames;
    frames.push_back(wire::frame(line));
    wire::send(commands, frames); // not connected: it is sent again when the broker says welcome
}

void Client::State::on_tick()
{
    if (welcome && ++silent_ticks > silent_ticks_limit)
    {
        // A process that is stopped or hangs: what is on its way is sent again when it is back, or another in its place.
        deaf = true;
        lost();
        reconnect();
    }
    if (welcome) { transmit(wire::joined({wire::version, wire::ping})); }
    else if (refusal && refusal->code == Errc::already_exists) { send_hello(); } // the one before us may be gone now
    else if (session_over) { reconnect(); } // the administrator may have changed the rules
}

void Client::State::on_message()
{
    wire::Frames frames;
    for (int i = 0; i < batch_per_turn && wire::receive(commands, frames); ++i)
    {
        silent_ticks = 0;
        for (zmq::message_t& frame : frames) { handle(std::move(frame)); }
    }
}

void Client::State::handle(zmq::message_t frame)
{
    const wire::Line line{wire::text(frame)};
    if (line.version() != wire::version || !line.complete()) { return; }
    const std::string_view verb = line.verb();
    const auto at = [&line](std::size_t i) { return line.at(i); };
    if (verb == wire::published)
    {
        for (std::string_view pairs = at(1); !pairs.empty();) // id, cursor, id, cursor, ...
        {
            const std::string_view id = wire::next_field(pairs);
            const std::string_view cursor = wire::next_field(pairs);
            answer_outstanding(id, wire::line({wire::version, wire::published, id, cursor}));
        }
    }
    else if (verb == wire::result || verb == wire::unpublished || verb == wire::events ||
        verb == wire::reading_failed)
    {
        const std::string id{at(1)};
        answer_outstanding(id, std::move(frame));
    }
    else if (verb == wire::request)
    {
        Request request;
        request.delivery = at(1);
        request.command = at(2);
        request.context.deadline_ms = wire::number(at(3)).value_or(0);
        request.context.idempotency_key = at(4);
        request.context.traceparent = at(5);
        request.context.caller = at(6);
        request.body = at(7);
        accept_request(std::move(request));
    }
    else if (verb == wire::welcome) { welcomed(); }
    else if (verb == wire::refused)
    {
        Error error = wire::error_from(at(1), at(2));
        if (error.code != Errc::already_exists)
        {
            refused(std::move(error));
            return;
        }
        refusal = std::move(error);
        changed.set();
    }
    else if (verb == wire::pong)
    {
        if (at(2) == "unknown" && !goodbye) { send_hello(); }
        if (config.remote)
        {
            // Where only the port of the commands is let through, no live frame ever comes: the heartbeat says it too.
            const std::uint64_t head = wire::number(at(1)).value_or(0);
            for (LiveInbox* inbox : inboxes)
            {
                if (head <= inbox->head) { continue; }
                inbox->head = head;
                inbox->wake.set();
            }
        }
    }
    else if (verb == wire::bye)
    {
        goodbye = true;
        changed.set();
    }
}

void Client::State::answer_outstanding(std::string_view id, zmq::message_t answer)
{
    const auto found = outstanding.find(std::string{id});
    if (found == outstanding.end()) { return; } // the caller gave up
    Outstanding& request = *found->second;
    if (request.answer) { return; }
    request.answer = std::move(answer);
    request.done.set();
}

namespace
{
Task<Result<Done>> wait_answer(Outstanding* request)
{
    co_await request->done.wait();
    co_return Done{};
}
} // namespace

Task<Result<zmq::message_t>> Client::State::exchange(std::string id, std::string line, bool repeatable, milliseconds limit, std::string what)
{
    if (outstanding.size() >= max_outstanding)
    {
        co_return Error{Errc::resource_exhausted, what + ": too many requests are on their way to the bus", {}, {}};
    }
    if (outstanding.contains(id))
    {
        co_return Error{Errc::already_exists, what + ": the same request is on its way already", {}, {}};
    }
    // A service goes on asking: its rules may be mended while it runs. A tool has an answer.
    if (refused_for_good && !welcome && config.service.empty()) { co_return *refusal; }
    Outstanding request{loop, std::move(line)};
    request.repeatable = repeatable;
    request.number = ++requests;
    outstanding.emplace(id, &request);
    struct Forget
    {
        State& state;
        const std::string& id;
        ~Forget() { state.outstanding.erase(id); }
    } forget{*this, id};
    // A new connection that nobody has noticed yet would carry this request before those that are to be sent again.
    on_monitor();
    if (welcome)
    {
        request.sent = true;
        transmit(request.line);
    }
    auto waiting = wait_answer(&request);
    auto in_time = co_await with_timeout(loop, limit, what, std::move(waiting));
    if (request.error) { co_return std::move(*request.error).within(what); }
    if (!in_time)
    {
        if (refusal) { co_return *refusal; }
        if (welcome) { co_return std::move(in_time).error(); }
        co_return absent(std::move(what));
    }
    co_return std::move(*request.answer);
}

// --- serving ----------------------------------------------------------------------------------------------------

void Client::State::accept_request(Request request)
{
    const auto found = served.find(request.command);
    if (found == served.end())
    {
        const Error error{Errc::not_found, config.service + " does not serve " + request.command, {}, {}};
        reply(request.delivery, std::string{to_string(error.code)}, wire::error_body(error));
        return;
    }
    if (!request.context.idempotency_key.empty())
    {
        const std::string key = request.command + '\0' + request.context.idempotency_key;
        auto& deliveries = running_keys[key];
        deliveries.push_back(request.delivery);
        if (deliveries.size() > 1) { return; } // delivered again while it runs: one run, and an answer to both
    }
    Served& target = found->second;
    if (target.running >= target.max_in_flight)
    {
        if (queued.size() >= max_queued_requests)
        {
            const Error error{Errc::resource_exhausted, config.service + " has too many requests waiting", "try again later", {}};
            running_keys.erase(request.command + '\0' + request.context.idempotency_key);
            reply(request.delivery, std::string{to_string(error.code)}, wire::error_body(error));
            return;
        }
        queued.push_back(std::move(request));
        return;
    }
    ++target.running;
    scope.spawn(run_request(std::move(request)));
}

void Client::State::start_next(Served& target)
{
    const auto next = std::find_if(queued.begin(), queued.end(),
                                   [&](const Request& request) { return &served.find(request.command)->second == &target; });
    if (next == queued.end()) { return; }
    Request request = std::move(*next);
    queued.erase(next);
    ++target.running;
    scope.spawn(run_request(std::move(request)));
}

Task<> Client::State::run_request(Request request)
{
    Served& target = served.find(request.command)->second;
    auto result = co_await target.handler(request.body, request.context);
    const std::string code = result ? std::string{wire::ok} : std::string{to_string(result.error().code)};
    const std::string body = result ? std::move(*result) : wire::error_body(result.error());
    if (request.context.idempotency_key.empty()) { reply(request.delivery, code, body); }
    else
    {
        const auto deliveries = running_keys.extract(request.command + '\0' + request.context.idempotency_key);
        if (!deliveries.empty())
        {
            for (const std::string& delivery : deliveries.mapped()) { reply(delivery, code, body); }
        }
    }
    --target.running;
    start_next(target);
}

void Client::State::reply(std::string delivery, std::string code, std::string body)
{
    std::string line = wire::joined({wire::version, wire::reply, delivery, code, body});
    if (welcome) { transmit(line); }
    else if (replies.size() < max_kept_replies) { replies.push_back(std::move(line)); }
}

// --- reading ----------------------------------------------------------------------------------------------------

Task<Result<Page>> Client::State::read_page(std::string after, std::size_t limit, Filter filter)
{
    const nlohmann::json json{{"type", filter.type_prefix}, {"subject", filter.subject}, {"source", filter.source}, {"severity", filter.min_severity}};
    std::string id = "r" + std::to_string(next_correlation++);
    const std::string filter_text = json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    std::string request = wire::joined({wire::version, wire::read, id, after, std::to_string(limit), filter_text});
    auto answer = co_await exchange(id, std::move(request), true, milliseconds{10'000}, "read events");
    if (!answer) { co_return std::move(answer).error(); }
    const wire::Line line{wire::text(*answer)};
    if (line.verb() == wire::reading_failed) { co_return wire::error_from(line.at(2), line.at(3)); }
    Page page;
    page.epoch = wire::number(line.at(2)).value_or(0);
    page.next = wire::number(line.at(3)).value_or(0);
    page.last = wire::number(line.at(4)).value_or(0);
    page.gap_from = wire::number(line.at(5)).value_or(0);
    page.gap_to = wire::number(line.at(6)).value_or(0);
    page.gap_reason = line.at(7);
    for (std::string_view lines = line.at(8); !lines.empty();) { page.envelopes.emplace_back(wire::next_field(lines)); }
    co_return page;
}

void Client::State::open_live()
{
    if (live_watch) { return; }
    prepare(live);
    live.set(zmq::sockopt::linger, 0);
    live.set(zmq::sockopt::rcvhwm, 10'000);
    live.set(zmq::sockopt::subscribe, wire::event_topic);
    live.set(zmq::sockopt::subscribe, wire::head_topic);
    live_watch = std::make_unique<ZmqWatch>(loop, live, [this] { on_live(); });
    live.connect(events_address());
}

void Client::State::on_live()
{
    wire::Frames frames;
    for (int i = 0; i < batch_per_turn && wire::receive(live, frames); ++i)
    {
        std::string_view rest = wire::text(frames[0]);
        const std::string_view topic = wire::next_field(rest);
        const auto sequence = wire::number(wire::next_field(rest));
        if (frames.size() != 1 || !sequence) { continue; }
        for (LiveInbox* inbox : inboxes)
        {
            if (topic == wire::head_topic)
            {
                inbox->head = *sequence;
                inbox->epoch = wire::number(rest).value_or(0);
            }
            else if (inbox->frames.size() >= LiveInbox::max_frames)
            {
                inbox->frames.clear();
                inbox->overflowed = true;
            }
            else
            {
                inbox->frames.push_back({*sequence, std::string{topic.substr(wire::event_topic.size())}, std::string{rest}});
            }
            inbox->wake.set();
        }
    }
}

EventRecord parse_envelope(std::string envelope)
{
    EventRecord out;
    const auto json = nlohmann::ordered_json::parse(envelope, nullptr, false);
    const auto text_of = [&json](const char* key) -> std::string
    {
        if (!json.is_object()) { return {}; }
        const auto found = json.find(key);
        if (found == json.end() || !found->is_string()) { return {}; }
        return *found->get_ptr<const std::string*>();
    };
    out.id = text_of("id");
    out.type = text_of("type");
    out.source = text_of("source");
    out.subject = text_of("subject");
    out.severity = text_of("severity");
    out.time = text_of("time");
    out.traceparent = text_of("traceparent");
    auto cursor = cursor_from_string(text_of("sequence"));
    if (cursor) { out.cursor = *cursor; }
    if (json.is_object() && json.contains("data")) { out.data = json.find("data")->dump(); }
    out.envelope = std::move(envelope);
    return out;
}

} // namespace dstack::bus
