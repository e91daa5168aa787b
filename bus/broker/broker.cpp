#include "bus/broker/broker.hpp"
#include "bus/schema/bus.hpp"
#include "shared/http/server.hpp"
#include "shared/log/log.hpp"
#include "shared/state/files.hpp"
#include <sys/syscall.h>
#include <unistd.h>

namespace dstack::bus
{

namespace
{
constexpr int batch_per_turn = 256;                 ///< messages handled before others get a turn
constexpr std::uint64_t silence_limit_ms = 15'000;  ///< a service pings every 2 s
constexpr std::uint64_t turn_us = 5'000; ///< then handshakes and timers, whatever one peer asks for
constexpr std::uint64_t idle_tick_ms = 1'000; ///< and between two rounds of keep_house
constexpr std::uint64_t trim_interval_ms = 5'000;
constexpr std::size_t max_identities = 4096;
} // namespace

Broker::Broker(Loop& loop, BrokerConfig config, std::unique_ptr<Journal> journal)
    : loop_(loop), config_(std::move(config)), journal_(std::move(journal)), live_stream_(loop, live_), stats_(unix_ms()),
      connections_(loop, context_, [this](const Connections::Origin& origin, std::string reason) { on_failed_handshake(origin, std::move(reason)); }),
      token_lock_(loop), scope_(loop)
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
    auto access = load_access();
    if (!access) { return access; }
    try
    {
        bind_sockets();
    }
    catch (const zmq::error_t& error)
    {
        const std::string tcp = config_.tcp ? " and " + config_.tcp->text() + " with the next port" : std::string{};
        return errno_error("bind " + config_.directory + "/{commands,events}.sock" + tcp, error.num());
    }
    commands_watch_ = std::make_unique<ZmqWatch>(loop_, commands_, [this] { on_commands(); });
    live_watch_ = std::make_unique<ZmqWatch>(loop_, live_, [this] { on_subscriptions(); });
    tick_ = make_uv<uv_timer_t>([&](uv_timer_t* h) { return uv_timer_init(loop_.raw(), h); });
    tick_->data = this;
    tick_every(idle_tick_ms);

    schema::BusStarted started;
    started.version = DSTACK_VERSION;
    started.epoch = journal_->epoch();
    started.first_sequence = journal_->first();
    started.last_sequence = journal_->last();
    say(started);
    if (const LostTail& lost = journal_->lost_tail(); lost.from > 0)
    {
        schema::BusGap gap;
        gap.from = lost.from;
        gap.to = lost.to;
        gap.reason = "the end of the journal was lost";
        log::error("acknowledged events are missing from the journal", {{"from", lost.from}, {"to", lost.to}});
        say(gap);
    }
    return Done{};
}

// --- receiving --------------------------------------------------------------------------------------------------

/// Of what the handshake of this connection has found; taken apart once.
const Identity* Broker::identity_of(const std::string& user_id)
{
    const auto known = identities_.find(user_id);
    if (known != identities_.end()) { return &known->second; }
    auto identity = Identity::from_user_id(user_id);
    if (!identity) { return nullptr; }
    if (identities_.size() >= max_identities) { identities_.clear(); }
    return &identities_.emplace(user_id, std::move(*identity)).first->second;
}

void Broker::on_commands()
{
    const std::uint64_t until_us = steady_us() + turn_us;
    wire::Frames frames;
    for (int i = 0; i < batch_per_turn && steady_us() < until_us && wire::receive(commands_, frames); ++i)
    {
        if (frames.size() < 2)
        {
            ++counters_.malformed; // too many frames: whose they were is gone with them
            continue;
        }
        Message message;
        message.route = std::string{wire::text(frames[0])};
        const char* user_id = frames[1].gets("User-Id");
        const Identity* identity = identity_of(user_id != nullptr ? user_id : "");
        if (identity == nullptr) { continue; } // cannot happen: the handshake needs one
        message.identity = *identity;
        if (!message.identity.token.empty() || quotas_.ignored(message.route)) { message.fd = Connections::descriptor(frames[1]); }
        message.line = wire::Line{wire::text(frames[1])};
        if (!admit(message)) { continue; }
        stats_.received(message.route, message.identity, wire::size_of(frames), unix_ms());
        if (Registration* service = registered(message)) { service->last_seen_ms = unix_ms(); }
        dispatch(message);
        for (std::size_t next = 2; next < frames.size() && !quotas_.ignored(message.route); ++next)
        {
            message.line = wire::Line{wire::text(frames[next])};
            dispatch(message);
        }
    }
}

void Broker::dispatch(const Message& message)
{
    const std::string_view verb = message.line.verb();
    if (message.line.version() != wire::version) { malformed(message, "this broker speaks version 1 of the protocol: update the client"); }
    else if (!message.line.complete()) { malformed(message, "an unknown verb, or not all of its fields"); }
    else if (message.at(1).size() > wire::max_word_bytes) { malformed(message, "a correlation, id or name of more than 128 bytes"); }
    else if (verb == wire::publish) { on_publish(message); }
    else if (verb == wire::call) { on_call(message); }
    else if (verb == wire::reply) { on_reply(message); }
    else if (verb == wire::read) { on_read(message); }
    else if (verb == wire::ping) { on_ping(message); }
    else if (verb == wire::hello) { on_hello(message); }
    else if (verb == wire::bye) { on_bye(message); }
    else { malformed(message, "a verb that only the broker says"); }
}

void Broker::send(const std::string& route, zmq::message_t answer)
{
    const std::size_t bytes = route.size() + answer.size();
    if (!account(route, answer)) { return; } // it does not read, and has more waiting than it may
    wire::Frames frames;
    frames.reserve(2);
    frames.push_back(wire::frame(route));
    frames.push_back(std::move(answer));
    const bool taken = wire::send(commands_, frames); // a peer that is gone or does not read loses its answer; it will ask again
    stats_.sent(route, bytes, taken);
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
        const bool moved = up && registration.route != message.route;
        registration.route = message.route;
        registration.last_seen_ms = unix_ms();
        if (moved) { deliver_again(service); } // what was on its way over the old connection may be lost with it
        if (!up)
        {
            if (registration.pid != 0 && registration.pid != message.identity.pid) { ++registration.restarts; }
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
    deliver_again(service);
    for (const std::uint64_t delivery : calls_.all_of(service))
    {
        const Call* call = calls_.find(delivery);
        if (!call->delivered) { continue; } // waits for the restart, until its deadline
        fail_call(delivery, Error{Errc::unavailable, service + " went away while it worked on " + call->command,
                                  "see `dstack events --type service.`; then try again", {}});
    }
}

void Broker::deliver_again(const std::string& service)
{
    for (const std::uint64_t delivery : calls_.all_of(service))
    {
        Call* call = calls_.find(delivery);
        if (!call->key.empty()) { call->delivered = false; } // the key makes that harmless
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
    tick_every(calls_.size() > 0 ? busy_tick_ms : idle_tick_ms);
    if (now >= kept_house_ms_ + idle_tick_ms || now < kept_house_ms_) { keep_house(now); }
}

/// Leaves the timer alone when it runs at that pace already: one that is begun anew with each call would never end.
void Broker::tick_every(std::uint64_t ms)
{
    if (uv_timer_get_repeat(tick_.get()) == ms) { return; }
    uv_timer_start(
        tick_.get(), [](uv_timer_t* h) { static_cast<Broker*>(h->data)->on_tick(); }, ms, ms);
}

void Broker::keep_house(std::uint64_t now)
{
    kept_house_ms_ = now;
    check_silence();
    retry_own_events();
    on_peers_tick(now);
    stats_.sweep(now);
    send_head();
    if (now - trimmed_ms_ >= trim_interval_ms && !trimming_)
    {
        trimmed_ms_ = now;
        scope_.spawn(trim_journal());
    }
}

Task<> Broker::drain(milliseconds limit)
{
    // Replies of services that are still working do not hold the broker up: their callers ask again.
    const auto until = loop_.now() + limit;
    while (committing_ && loop_.now() < until) { co_await sleep_for(loop_, milliseconds{1}); }
}

namespace
{
constexpr unsigned metrics_mode = 0660;

http::Limits metrics_limits()
{
    http::Limits limits;
    limits.max_header_bytes = 8 * 1024;
    limits.max_body_bytes = 1024;
    limits.max_connections = 16;
    limits.handler_timeout = limits.write_timeout = limits.header_timeout = limits.body_timeout = milliseconds{5'000};
    return limits;
}

Task<http::Response> answer_metrics(const Broker* broker, http::Request request)
{
    if (request.path() != "/metrics") { co_return http::text_response(404, "there is only /metrics\n"); }
    if (request.method != "GET" && request.method != "HEAD") { co_return http::text_response(405, "only GET\n"); }
    http::Response response;
    response.headers.add("Content-Type", "application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.body = open_metrics(broker->statistics());
    co_return response;
}

/// Metrics are a comfort: the bus serves without them.
void listen_metrics(http::Server& server, const std::string& path)
{
    if (path.empty()) { return; }
    auto listening = server.listen_unix(path, metrics_mode);
    if (!listening) { log::warn("no metrics", {{"socket", path}, {"error", listening.error().message}}); }
}
} // namespace

Task<Result<Done>> serve(Daemon& daemon, BrokerConfig config)
{
    const auto slash = config.journal.rfind('/');
    auto made = state::make_dirs(config.journal.substr(0, slash), 0750);
    if (!made) { co_return std::move(made).error(); }
    auto run_dir = state::make_dirs(config.directory, 0750);
    if (!run_dir) { co_return std::move(run_dir).error(); }
    auto lock = state::FileLock::acquire(config.directory + "/broker.lock", milliseconds{2000});
    if (!lock) { co_return std::move(lock).error().within("another broker serves " + config.directory); }
    auto journal = Journal::open(daemon.loop(), config.journal, config.retention);
    if (!journal) { co_return std::move(journal).error(); }
    const std::string directory = config.directory;
    const std::string metrics_socket = config.metrics;
    Broker broker{daemon.loop(), std::move(config), std::move(*journal)};
    broker.on_health([&daemon](std::string_view text) { daemon.status(text); });
    auto listening = broker.listen();
    if (!listening) { co_return std::move(listening).error(); }
    http::Server metrics{daemon.loop(), metrics_limits(), [&broker](http::Request request) { return answer_metrics(&broker, std::move(request)); }};
    listen_metrics(metrics, metrics_socket);
    log::info("serving", {{"directory", directory}});
    daemon.ready();
    co_await daemon.stop_requested();
    metrics.stop_accepting();
    co_await broker.drain(milliseconds{3000});
    log::info("stopped");
    co_return Done{};
}

} // namespace dstack::bus
