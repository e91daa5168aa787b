#include "bus/broker/broker.hpp"
#include "bus/schema/bus.hpp"
#include "bus/schema/catalog.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/log/log.hpp"
#include "shared/state/files.hpp"
#include <algorithm>
#include <array>
#include <chrono>
#include <nlohmann/json.hpp>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace dstack::bus
{

namespace
{

constexpr int batch_per_turn = 256;                 ///< messages handled before others get a turn
constexpr std::size_t max_publishing_per_route = 4096;
constexpr std::size_t max_reads = 256;
constexpr std::uint64_t silence_limit_ms = 15'000;  ///< a service pings every 2 s
constexpr std::uint64_t refusal_interval_ms = 1'000;
constexpr std::uint64_t max_deadline_ms = 3'600'000;
constexpr std::uint64_t tick_ms = 20;

std::uint64_t unix_ms()
{
    using namespace std::chrono;
    return static_cast<std::uint64_t>(duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count());
}

std::string random_id() { return crypto::to_hex(crypto::random_bytes(16)); }

} // namespace

Broker::Broker(Loop& loop, BrokerConfig config, std::unique_ptr<Journal> journal)
    : loop_(loop), config_(std::move(config)), journal_(std::move(journal)), committed_(loop), scope_(loop)
{
    for (const std::string& service : journal_->known_services()) { services_[service].since_ms = unix_ms(); }
}

Broker::~Broker()
{
    scope_.cancel();
    for (auto& [name, registration] : services_)
    {
        registration.death.reset();
        if (registration.pidfd >= 0) { ::close(registration.pidfd); }
    }
}

Result<Done> Broker::listen()
{
    auto made = state::make_dirs(config_.directory, 0750);
    if (!made) { return made; }
    try
    {
        zap_.bind("inproc://zeromq.zap.01");
        for (zmq::socket_t* socket : {&commands_, &live_})
        {
            socket->set(zmq::sockopt::zap_domain, std::string{wire::zap_domain});
            socket->set(zmq::sockopt::linger, 0);
            socket->set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(wire::max_message_bytes));
            socket->set(zmq::sockopt::handshake_ivl, 5000);
            socket->set(zmq::sockopt::backlog, 1024);
        }
        commands_.set(zmq::sockopt::router_mandatory, true);
        commands_.set(zmq::sockopt::sndhwm, 10'000);
        commands_.set(zmq::sockopt::rcvhwm, 10'000);
        live_.set(zmq::sockopt::sndhwm, 10'000);
        live_.set(zmq::sockopt::xpub_verbose, true);
        const mode_t before = ::umask(0117); // 0660, from the very first moment
        zap_watch_ = std::make_unique<ZmqWatch>(loop_, zap_, [this] { on_zap(); });
        commands_.bind("ipc://" + config_.directory + "/commands.sock");
        live_.bind("ipc://" + config_.directory + "/events.sock");
        ::umask(before);
    }
    catch (const zmq::error_t& error)
    {
        return errno_error("bind " + config_.directory + "/{commands,events}.sock", error.num());
    }
    commands_watch_ = std::make_unique<ZmqWatch>(loop_, commands_, [this] { on_commands(); });
    live_watch_ = std::make_unique<ZmqWatch>(loop_, live_, [this] { on_subscriptions(); });
    tick_ = make_uv<uv_timer_t>([&](uv_timer_t* h) { return uv_timer_init(loop_.raw(), h); });
    tick_->data = this;
    uv_timer_start(
        tick_.get(), [](uv_timer_t* h) { static_cast<Broker*>(h->data)->on_tick(); }, 1000, 1000);

    schema::BusStarted started;
    started.version = DSTACK_VERSION;
    started.epoch = journal_->epoch();
    started.first_sequence = journal_->first();
    started.last_sequence = journal_->last();
    say(started);
    return Done{};
}

// --- identity ---------------------------------------------------------------------------------------------------

void Broker::on_zap()
{
    // RFC 27: [route, "", "1.0", request id, domain, address, routing id, mechanism, ...]
    wire::Frames request;
    for (int i = 0; i < batch_per_turn && wire::receive(zap_, request); ++i)
    {
        if (request.size() < 8) { continue; }
        Result<Identity> identity = Error{Errc::unauthenticated, "only the NULL mechanism over ipc is known here", {}, {}};
        PeerFacts facts;
        if (wire::text(request[7]) == "NULL")
        {
            auto parsed = parse_zap_address(wire::text(request[5]));
            if (parsed)
            {
                facts = std::move(*parsed);
                look_up(facts);
                identity = identify(facts, config_.identity);
            }
            else { identity = std::move(parsed).error(); }
        }
        const bool ok = static_cast<bool>(identity);
        if (!ok) { say_refused(facts.uid, facts.pid, "connect", identity.error().message); }
        wire::Frames answer;
        answer.push_back(std::move(request[0]));
        answer.push_back(wire::frame(""));
        answer.push_back(wire::frame("1.0"));
        answer.push_back(std::move(request[3]));
        answer.push_back(wire::frame(ok ? "200" : "400"));
        answer.push_back(wire::frame(ok ? "OK" : "refused"));
        answer.push_back(wire::frame(ok ? identity->user_id() : std::string{}));
        answer.push_back(wire::frame(""));
        wire::send(zap_, answer);
    }
}

void Broker::say_refused(std::uint32_t uid, std::uint32_t pid, std::string tried, std::string reason)
{
    const std::uint64_t now = unix_ms();
    if (now - refused_at_ms_ < refusal_interval_ms)
    {
        ++refusals_suppressed_;
        return;
    }
    refused_at_ms_ = now;
    log::warn("peer refused", {{"uid", uid}, {"pid", pid}, {"tried", tried}, {"reason", reason}});
    schema::BusPeerRefused event;
    event.uid = uid;
    event.pid = pid;
    event.tried = std::move(tried);
    event.reason = std::move(reason);
    event.suppressed = std::exchange(refusals_suppressed_, 0);
    say(std::move(event));
}

void Broker::refuse(const Message& message, std::string tried, const Error& error)
{
    say_refused(message.identity.uid, message.identity.pid, std::move(tried), error.message);
}

// --- receiving --------------------------------------------------------------------------------------------------

void Broker::on_commands()
{
    wire::Frames frames;
    for (int i = 0; i < batch_per_turn && wire::receive(commands_, frames); ++i)
    {
        if (frames.size() < 3) { continue; }
        Message message;
        message.route = std::string{wire::text(frames[0])};
        const char* user_id = frames[1].gets("User-Id");
        auto identity = Identity::from_user_id(user_id != nullptr ? user_id : "");
        if (!identity) { continue; } // cannot happen: the handshake needs one
        message.identity = std::move(*identity);
        if (wire::text(frames[1]) != wire::version)
        {
            const Error error{Errc::invalid_argument, "this broker speaks version 1 of the protocol", "update the client", {}};
            send(message.route, {wire::version, wire::refused, to_string(error.code), wire::error_body(error)});
            continue;
        }
        frames.erase(frames.begin(), frames.begin() + 2);
        message.frames = std::move(frames);
        dispatch(std::move(message));
    }
}

void Broker::dispatch(Message message)
{
    if (Registration* service = registered(message)) { service->last_seen_ms = unix_ms(); }
    const std::string_view verb = message.at(0);
    if (verb == wire::publish) { on_publish(message); }
    else if (verb == wire::call) { on_call(message); }
    else if (verb == wire::reply) { on_reply(message); }
    else if (verb == wire::read) { on_read(message); }
    else if (verb == wire::ping) { on_ping(message); }
    else if (verb == wire::hello) { on_hello(message); }
    else if (verb == wire::bye) { on_bye(message); }
    else { refuse(message, "an unknown verb", Error{Errc::invalid_argument, "unknown verb", {}, {}}); }
}

void Broker::send(const std::string& route, std::initializer_list<std::string_view> parts)
{
    wire::Frames frames;
    frames.reserve(parts.size() + 1);
    frames.push_back(wire::frame(route));
    for (const std::string_view part : parts) { frames.push_back(wire::frame(part)); }
    wire::send(commands_, frames); // a peer that is gone or does not read loses its answer; it will ask again
}

// --- registration -----------------------------------------------------------------------------------------------

Registration* Broker::registered(const Message& message)
{
    if (message.identity.service.empty()) { return nullptr; }
    const auto found = services_.find(message.identity.service);
    if (found == services_.end() || found->second.route != message.route) { return nullptr; }
    return &found->second;
}

void Broker::on_hello(const Message& message)
{
    const std::string service{message.at(1)};
    if (!service.empty())
    {
        if (message.identity.service != service)
        {
            const Error error{Errc::permission_denied, "you are " + message.identity.caller() + ", not the service " + service,
                              "see [identity.services] in the broker's configuration", {}};
            refuse(message, "register as " + service, error);
            send(message.route, {wire::version, wire::refused, to_string(error.code), wire::error_body(error)});
            return;
        }
        Registration& registration = services_[service];
        const bool up = !registration.route.empty();
        if (up && registration.pid != message.identity.pid)
        {
            const Error error{Errc::already_exists, service + " is registered by process " + std::to_string(registration.pid),
                              "stop that process first", {}};
            refuse(message, "register as " + service, error);
            send(message.route, {wire::version, wire::refused, to_string(error.code), wire::error_body(error)});
            return;
        }
        registration.route = message.route;
        registration.last_seen_ms = unix_ms();
        if (!up)
        {
            registration.pid = message.identity.pid;
            registration.version = message.at(2);
            registration.since_ms = registration.last_seen_ms;
            watch_death(registration);
            schema::ServiceUp event;
            event.service = service;
            event.pid = registration.pid;
            event.version = registration.version;
            say(std::move(event));
            scope_.spawn(note_service(service));
        }
    }
    send(message.route, {wire::version, wire::welcome, std::to_string(journal_->epoch()), std::to_string(journal_->last()),
                         DSTACK_VERSION, message.identity.caller()});
    if (!service.empty()) { deliver_waiting(service); }
}

Task<> Broker::note_service(std::string service)
{
    auto noted = co_await journal_->remember_service(service);
    if (!noted) { log::warn("service not remembered", {{"service", service}, {"error", noted.error().message}}); }
}

void Broker::watch_death(Registration& registration)
{
    registration.death.reset();
    if (registration.pidfd >= 0) { ::close(std::exchange(registration.pidfd, -1)); }
    registration.pidfd = static_cast<int>(::syscall(SYS_pidfd_open, registration.pid, 0));
    if (registration.pidfd < 0) { return; } // it is gone already, or the kernel is old: silence will tell
    registration.death = make_uv<uv_poll_t>([&](uv_poll_t* h) { return uv_poll_init(loop_.raw(), h, registration.pidfd); });
    if (!registration.death) { return; }
    registration.death->data = this;
    uv_poll_start(registration.death.get(), UV_READABLE,
                  [](uv_poll_t* h, int, int)
                  {
                      auto* self = static_cast<Broker*>(h->data);
                      for (auto& [name, entry] : self->services_)
                      {
                          if (entry.death.get() == h)
                          {
                              self->service_down(std::string{name}, "process exited");
                              return;
                          }
                      }
                  });
}

void Broker::service_down(const std::string& service, std::string_view reason)
{
    Registration& registration = services_[service];
    if (registration.route.empty()) { return; }
    registration.route.clear();
    registration.since_ms = unix_ms();
    registration.death.reset();
    if (registration.pidfd >= 0) { ::close(std::exchange(registration.pidfd, -1)); }
    schema::ServiceDown event;
    event.service = service;
    event.pid = registration.pid;
    event.reason = reason;
    say(std::move(event));
    for (const std::uint64_t delivery : calls_.all_of(service))
    {
        Call* call = calls_.find(delivery);
        if (!call->delivered) { continue; } // waits for the restart, until its deadline
        if (!call->key.empty())
        {
            call->delivered = false; // delivered again after the restart: the key makes that harmless
            continue;
        }
        fail_call(delivery, Error{Errc::unavailable, service + " went away while it worked on " + call->command,
                                  "see `dstack events --type service.`; then try again", {}});
    }
}

void Broker::on_bye(const Message& message)
{
    if (registered(message) != nullptr) { service_down(message.identity.service, "goodbye"); }
    send(message.route, {wire::version, wire::bye});
}

void Broker::on_ping(const Message& message)
{
    const bool known = message.identity.service.empty() || registered(message) != nullptr;
    send(message.route, {wire::version, wire::pong, std::to_string(journal_->last()), known ? "known" : "unknown"});
}

void Broker::check_silence()
{
    const std::uint64_t now = unix_ms();
    std::vector<std::string> silent;
    for (const auto& [name, registration] : services_)
    {
        if (!registration.route.empty() && now - registration.last_seen_ms > silence_limit_ms) { silent.push_back(name); }
    }
    for (const std::string& name : silent) { service_down(name, "silent"); }
}

void Broker::on_tick()
{
    const std::uint64_t now = unix_ms();
    for (const std::uint64_t delivery : calls_.expired(now))
    {
        const Call* call = calls_.find(delivery);
        const bool waiting = !call->delivered;
        fail_call(delivery,
                  Error{waiting ? Errc::unavailable : Errc::deadline_exceeded,
                        waiting ? call->service + " is not there, and did not come back before the deadline of " + call->command
                                : call->service + " did not answer " + call->command + " before its deadline",
                        waiting ? "see `dstack events --type service.`" : "the outcome is not known: look before trying again", {}});
    }
    check_silence();
    send_head();
    const bool busy = calls_.size() > 0;
    uv_timer_set_repeat(tick_.get(), busy ? tick_ms : 1000);
}

// --- events -----------------------------------------------------------------------------------------------------

template <schema::EventStruct E>
void Broker::say(E event)
{
    PendingEvent pending;
    pending.id = random_id();
    pending.type = E::type.name;
    pending.service = "bus";
    pending.subject = event.subject();
    pending.severity = schema::to_string(E::type.severity);
    pending.time_ms = unix_ms();
    pending.data = schema::to_json(std::move(event));
    unanswered_.push_back({{}, std::move(pending)});
    if (!committing_) { scope_.spawn(commit_events()); }
}

void Broker::on_publish(const Message& message)
{
    // publish, id, type, subject, severity, time_ms, traceparent, data
    const auto answer_error = [&](const Error& error)
    { send(message.route, {wire::version, wire::unpublished, message.at(1), to_string(error.code), wire::error_body(error)}); };
    const schema::EventType* type = schema::find_event(message.at(2));
    const auto time_ms = wire::number(message.at(5));
    const std::string_view data = message.at(7);
    const std::string_view severity = message.at(4);
    const bool severity_known = severity == "debug" || severity == "info" || severity == "warning" || severity == "error";
    if (type == nullptr || !time_ms || !severity_known || message.at(1).empty() || message.at(1).size() > 64 ||
        message.at(3).size() > 256 || message.at(6).size() > 128 || data.size() > wire::max_event_bytes || !data.starts_with('{') ||
        !nlohmann::json::accept(data))
    {
        const Error error{Errc::invalid_argument, "event " + std::string{message.at(2).substr(0, 64)} + ": malformed or not in the schema", {}, {}};
        refuse(message, "publish " + std::string{message.at(2).substr(0, 64)}, error);
        answer_error(error);
        return;
    }
    auto allowed = may_publish(message.identity, *type);
    if (!allowed)
    {
        refuse(message, "publish " + std::string{type->name}, allowed.error());
        answer_error(allowed.error());
        return;
    }
    std::size_t& mine = publishing_[message.route];
    if (mine >= max_publishing_per_route)
    {
        answer_error(Error{Errc::resource_exhausted, "you have " + std::to_string(mine) + " events that are not yet durable",
                           "wait for acknowledgements before publishing more", {}});
        return;
    }
    ++mine;
    PendingEvent event{std::string{message.at(1)}, std::string{type->name}, message.identity.service, std::string{message.at(3)},
                       std::string{severity}, *time_ms, std::string{message.at(6)}, std::string{data}};
    unanswered_.push_back({message.route, std::move(event)});
    if (!committing_) { scope_.spawn(commit_events()); }
}

Task<> Broker::commit_events()
{
    // One batch is on its way to the disk while the next one gathers.
    committing_ = true;
    committed_.reset();
    co_await next_turn(loop_);
    while (!unanswered_.empty())
    {
        std::vector<Unanswered> batch = std::exchange(unanswered_, {});
        std::vector<PendingEvent> events;
        events.reserve(batch.size());
        for (const Unanswered& one : batch) { events.push_back(one.event); }
        auto appended = co_await journal_->append(std::move(events));
        for (std::size_t i = 0; i < batch.size(); ++i)
        {
            const std::string& route = batch[i].route;
            const auto mine = publishing_.find(route);
            if (mine != publishing_.end() && --mine->second == 0) { publishing_.erase(mine); }
            if (!appended)
            {
                if (!route.empty())
                {
                    send(route, {wire::version, wire::unpublished, batch[i].event.id, to_string(appended.error().code),
                                 wire::error_body(appended.error())});
                }
                continue;
            }
            const JournalEvent& event = (*appended)[i];
            const std::string sequence = std::to_string(event.sequence);
            if (!route.empty())
            {
                send(route, {wire::version, wire::published, batch[i].event.id, std::to_string(journal_->epoch()) + ':' + sequence});
            }
            if (event.duplicate) { continue; }
            wire::Frames live;
            live.push_back(wire::frame(std::string{wire::event_topic} + event.type));
            live.push_back(wire::frame(sequence));
            live.push_back(wire::frame(event.envelope));
            wire::send(live_, live);
        }
        if (!appended) { log::error("events not journalled", {{"count", batch.size()}, {"error", appended.error().message}}); }
    }
    committing_ = false;
    committed_.set();
}

void Broker::send_head()
{
    wire::Frames head;
    head.push_back(wire::frame(wire::head_topic));
    head.push_back(wire::frame(std::to_string(journal_->last())));
    head.push_back(wire::frame(std::to_string(journal_->epoch())));
    wire::send(live_, head);
}

void Broker::on_subscriptions()
{
    wire::Frames frames;
    bool any = false;
    for (int i = 0; i < batch_per_turn && wire::receive(live_, frames); ++i) { any = true; }
    if (any) { send_head(); } // a new subscriber learns at once that it is connected, and how far the journal is
}

void Broker::on_read(const Message& message)
{
    // read, correlation, after ("0", "now", "EPOCH:SEQUENCE", "time:MS"), limit, filter
    const std::string correlation{message.at(1)};
    const auto fail_read = [&](const Error& error)
    { send(message.route, {wire::version, wire::reading_failed, correlation, to_string(error.code), wire::error_body(error)}); };
    const auto limit = wire::number(message.at(3));
    const std::string_view after = message.at(2);
    JournalQuery query;
    if (!limit || *limit == 0 || *limit > wire::max_read_events)
    {
        fail_read(Error{Errc::invalid_argument, "read: limit must be 1 to " + std::to_string(wire::max_read_events), {}, {}});
        return;
    }
    if (reads_ >= max_reads)
    {
        fail_read(Error{Errc::resource_exhausted, "read: too many readers at once", "try again later", {}});
        return;
    }
    query.limit = *limit;
    if (after == "now") { query.after = journal_->last(); }
    else if (after.starts_with("time:")) { query.since_ms = wire::number(after.substr(5)).value_or(0); }
    else if (const auto colon = after.find(':'); colon != std::string_view::npos)
    {
        const auto epoch = wire::number(after.substr(0, colon));
        const auto sequence = wire::number(after.substr(colon + 1));
        if (!epoch || !sequence)
        {
            fail_read(Error{Errc::invalid_argument, "read: the cursor must be EPOCH:SEQUENCE", {}, {}});
            return;
        }
        if (*epoch == journal_->epoch()) { query.after = *sequence; }
        else
        {
            // Another journal: nothing of what the reader knew is here. Its first page says so, then begins anew.
            send(message.route, {wire::version, wire::events, correlation, std::to_string(journal_->epoch()), "0",
                                 std::to_string(journal_->last()), "0", std::to_string(*sequence),
                                 "the journal was replaced: the cursor is of epoch " + std::to_string(*epoch)});
            return;
        }
    }
    const auto filter = nlohmann::json::parse(message.at(4), nullptr, false);
    const auto text_of = [&filter](const char* key) -> std::string
    {
        if (!filter.is_object()) { return {}; }
        const auto found = filter.find(key);
        if (found == filter.end() || !found->is_string()) { return {}; }
        return *found->get_ptr<const std::string*>();
    };
    query.type_prefix = text_of("type");
    query.subject = text_of("subject");
    query.source = text_of("source");
    const std::string severity = text_of("severity");
    query.min_severity = severity.empty() ? 0 : severity_rank(severity);
    ++reads_;
    scope_.spawn(read_events(message.route, correlation, std::move(query)));
}

Task<> Broker::read_events(std::string route, std::string correlation, JournalQuery query)
{
    auto page = co_await journal_->read(std::move(query));
    --reads_;
    if (!page)
    {
        send(route, {wire::version, wire::reading_failed, correlation, to_string(page.error().code), wire::error_body(page.error())});
        co_return;
    }
    wire::Frames frames;
    for (const std::string& part :
         {route, std::string{wire::version}, std::string{wire::events}, correlation, std::to_string(journal_->epoch()),
          std::to_string(page->next), std::to_string(page->last), std::to_string(page->gap_from), std::to_string(page->gap_to),
          page->gap_reason})
    {
        frames.push_back(wire::frame(part));
    }
    for (const JournalEvent& event : page->events) { frames.push_back(wire::frame(event.envelope)); }
    wire::send(commands_, frames);
}

// --- commands ---------------------------------------------------------------------------------------------------

void Broker::fail(const std::string& route, std::string_view correlation, const Error& error)
{
    send(route, {wire::version, wire::result, correlation, to_string(error.code), wire::error_body(error)});
}

void Broker::fail_call(std::uint64_t delivery, const Error& error)
{
    auto call = calls_.take(delivery);
    if (call) { fail(call->caller_route, call->correlation, error); }
}

void Broker::on_call(const Message& message)
{
    // call, correlation, command, deadline_ms, idempotency key, traceparent, body
    const std::string_view correlation = message.at(1);
    const schema::CommandType* type = schema::find_command(message.at(2));
    const auto deadline = wire::number(message.at(3));
    if (type == nullptr)
    {
        fail(message.route, correlation,
             Error{Errc::not_found, "there is no command " + std::string{message.at(2).substr(0, 64)}, "see docs/reference/bus.md", {}});
        return;
    }
    const std::uint64_t now = unix_ms();
    if (!deadline || *deadline > now + max_deadline_ms || message.at(4).size() > 128 || message.at(5).size() > 128 ||
        message.at(6).size() > wire::max_body_bytes)
    {
        fail(message.route, correlation, Error{Errc::invalid_argument, std::string{type->name} + ": malformed call", {}, {}});
        return;
    }
    if (*deadline <= now)
    {
        fail(message.route, correlation, Error{Errc::deadline_exceeded, std::string{type->name} + ": the deadline was over on arrival", {}, {}});
        return;
    }
    auto allowed = may_send(message.identity, *type);
    if (!allowed)
    {
        refuse(message, std::string{type->name}, allowed.error());
        fail(message.route, correlation, allowed.error());
        return;
    }
    Call call;
    call.caller_route = message.route;
    call.correlation = correlation;
    call.command = type->name;
    call.service = type->target;
    call.deadline_ms = *deadline;
    call.key = message.at(4);
    call.traceparent = message.at(5);
    call.caller = message.identity.caller();
    call.scope = message.identity.service.empty() ? "uid:" + std::to_string(message.identity.uid) : message.identity.service;
    call.body = message.at(6);
    if (type->target == "bus")
    {
        send(message.route, {wire::version, wire::result, correlation, wire::ok, serve_own(call)});
        return;
    }
    if (!services_.contains(call.service))
    {
        fail(message.route, correlation,
             Error{Errc::unavailable, call.service + ", which serves " + call.command + ", never registered here",
                   "start it: `systemctl start dstack-" + call.service + "`, or `dstackup dev up`", {}});
        return;
    }
    if (call.key.empty())
    {
        route_call(std::move(call));
        return;
    }
    call.request_hash = crypto::to_hex(crypto::sha256(call.command + '\n' + call.body));
    if (Call* same = calls_.find_key(call.scope, call.key))
    {
        if (same->request_hash != call.request_hash)
        {
            fail(message.route, correlation,
                 Error{Errc::invalid_argument, call.command + ": the idempotency key was used for another request", {}, {}});
            return;
        }
        // The caller came back, or asks twice: the newest asker gets the one result.
        same->caller_route = call.caller_route;
        same->correlation = call.correlation;
        return;
    }
    scope_.spawn(route_keyed_call(std::move(call)));
}

Task<> Broker::route_keyed_call(Call call)
{
    auto kept = co_await journal_->find_result(call.scope, call.key);
    if (!kept)
    {
        fail(call.caller_route, call.correlation, std::move(kept).error().within(call.command));
        co_return;
    }
    if (*kept)
    {
        const KeptResult& result = **kept;
        if (result.request_hash != call.request_hash)
        {
            fail(call.caller_route, call.correlation,
                 Error{Errc::invalid_argument, call.command + ": the idempotency key was used for another request", {}, {}});
        }
        else { send(call.caller_route, {wire::version, wire::result, call.correlation, result.code, result.body}); }
        co_return;
    }
    route_call(std::move(call));
}

void Broker::route_call(Call call)
{
    const std::string route = call.caller_route;
    const std::string correlation = call.correlation;
    auto delivery = calls_.add(std::move(call));
    if (!delivery)
    {
        fail(route, correlation, delivery.error());
        return;
    }
    uv_timer_start(
        tick_.get(), [](uv_timer_t* h) { static_cast<Broker*>(h->data)->on_tick(); }, tick_ms, tick_ms);
    deliver(*calls_.find(*delivery));
}

void Broker::deliver(Call& call)
{
    const Registration& service = services_[call.service];
    if (service.route.empty()) { return; } // when it registers, see deliver_waiting
    call.delivered = true;
    send(service.route, {wire::version, wire::request, std::to_string(call.delivery), call.command, std::to_string(call.deadline_ms),
                         call.key, call.traceparent, call.caller, call.body});
}

void Broker::deliver_waiting(const std::string& service)
{
    for (const std::uint64_t delivery : calls_.waiting_for(service)) { deliver(*calls_.find(delivery)); }
}

void Broker::on_reply(const Message& message)
{
    // reply, delivery, code, body
    const auto delivery = wire::number(message.at(1));
    const Call* call = delivery ? calls_.find(*delivery) : nullptr;
    if (call == nullptr || call->service != message.identity.service) { return; } // too late, or not its to answer
    finish(*delivery, message.at(2), message.at(3));
}

void Broker::finish(std::uint64_t delivery, std::string_view code, std::string_view body)
{
    Call* call = calls_.find(delivery);
    const bool transient = code == to_string(Errc::unavailable) || code == to_string(Errc::deadline_exceeded) ||
                           code == to_string(Errc::resource_exhausted) || code == to_string(Errc::cancelled);
    if (call->key.empty() || transient)
    {
        send(call->caller_route, {wire::version, wire::result, call->correlation, code, body});
        calls_.take(delivery);
        return;
    }
    scope_.spawn(finish_keyed(*call, std::string{code}, std::string{body}));
}

Task<> Broker::finish_keyed(Call call, std::string code, std::string body)
{
    KeptResult result{call.request_hash, code, body};
    const std::uint64_t now = unix_ms();
    auto kept = co_await journal_->keep_result(call.scope, call.key, std::move(result), now);
    if (!kept) { log::error("result not kept", {{"command", call.command}, {"error", kept.error().message}}); }
    auto done = calls_.take(call.delivery); // may have another asker by now
    if (!done) { co_return; }
    send(done->caller_route, {wire::version, wire::result, done->correlation, code, body});
}

std::string Broker::serve_own(const Call&)
{
    schema::BusServices::Reply reply;
    reply.version = DSTACK_VERSION;
    reply.epoch = journal_->epoch();
    reply.last_sequence = journal_->last();
    for (const auto& [name, registration] : services_)
    {
        schema::ServiceEntry entry;
        entry.service = name;
        entry.state = registration.route.empty() ? "down" : "up";
        entry.pid = registration.pid;
        entry.version = registration.version;
        entry.since = rfc3339(registration.since_ms);
        entry.pending = calls_.all_of(name).size();
        reply.services.push_back(std::move(entry));
    }
    std::sort(reply.services.begin(), reply.services.end(),
              [](const auto& a, const auto& b) { return a.service < b.service; });
    return schema::to_json(std::move(reply));
}

Task<> Broker::drain(milliseconds limit)
{
    // Replies of services that are still working do not hold the broker up: their callers ask again.
    const auto until = loop_.now() + limit;
    while (committing_ && loop_.now() < until) { co_await sleep_for(loop_, milliseconds{1}); }
}

Task<Result<Done>> serve(Daemon& daemon, BrokerConfig config)
{
    const auto slash = config.journal.rfind('/');
    auto made = state::make_dirs(config.journal.substr(0, slash), 0750);
    if (!made) { co_return std::move(made).error(); }
    auto run_dir = state::make_dirs(config.directory, 0750);
    if (!run_dir) { co_return std::move(run_dir).error(); }
    auto lock = state::FileLock::acquire(config.directory + "/broker.lock", milliseconds{2000});
    if (!lock) { co_return std::move(lock).error().within("another broker serves " + config.directory); }
    auto journal = Journal::open(daemon.loop(), config.journal, config.max_events);
    if (!journal) { co_return std::move(journal).error(); }
    const std::string directory = config.directory;
    Broker broker{daemon.loop(), std::move(config), std::move(*journal)};
    auto listening = broker.listen();
    if (!listening) { co_return std::move(listening).error(); }
    log::info("serving", {{"directory", directory}});
    daemon.ready();
    co_await daemon.stop_requested();
    co_await broker.drain(milliseconds{3000});
    log::info("stopped");
    co_return Done{};
}

} // namespace dstack::bus
