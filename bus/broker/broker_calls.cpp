// The broker's commands: access, idempotency, delivery, results.
#include "bus/broker/broker.hpp"
#include "bus/schema/bus.hpp"
#include "bus/schema/catalog.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/log/log.hpp"
#include <algorithm>

namespace dstack::bus
{

namespace
{
constexpr std::uint64_t max_deadline_ms = 3'600'000;

/// W3C: the last bit of the last field of "00-TRACE-SPAN-FLAGS".
bool is_sampled(std::string_view traceparent)
{
    return traceparent.size() == 55 && traceparent.starts_with("00-") && std::string_view{"13579bdf"}.find(traceparent[54]) != std::string_view::npos;
}
} // namespace

void Broker::fail(const std::string& route, std::string_view correlation, const Error& error)
{
    send(route, {wire::version, wire::result, correlation, to_string(error.code), wire::error_body(error)});
}

void Broker::fail_call(std::uint64_t delivery, const Error& error)
{
    auto call = calls_.take(delivery);
    if (!call) { return; }
    note_finished(*call, to_string(error.code), wire::error_body(error));
    fail(call->caller_route, call->correlation, error);
}

void Broker::answer_call(const Call& call, std::string_view code, std::string_view body)
{
    // Room for what is large was there when the call came, but many may end at once.
    auto room = body.size() > 4096 ? quotas_.may_ask(call.caller_route) : Result<Done>{Done{}};
    if (!room) { fail(call.caller_route, call.correlation, room.error()); }
    else { send(call.caller_route, {wire::version, wire::result, call.correlation, code, body}); }
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
    auto room = quotas_.may_ask(message.route);
    if (!room)
    {
        refuse(message, std::string{type->name}, room.error());
        fail(message.route, correlation, room.error());
        return;
    }
    Call call;
    call.caller_route = message.route;
    call.correlation = correlation;
    call.received_us = steady_us();
    call.command = type->name;
    call.service = type->target;
    call.deadline_ms = *deadline;
    call.key = message.at(4);
    call.traceparent = message.at(5);
    call.caller = message.identity.caller();
    call.identity = message.identity;
    call.scope = message.identity.scope();
    call.body = message.at(6);
    if (is_token_command(type->name))
    {
        scope_.spawn(serve_token(std::move(call)));
        return;
    }
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
    scope_.spawn(route_keyed_call(std::move(call)));
}

/// A call with the same key is on its way already: the caller came back, or asks twice. The newest asker gets the one result.
bool Broker::joins_same(const Call& call)
{
    Call* same = calls_.find_key(call.scope, call.key);
    if (same == nullptr) { return false; }
    if (same->request_hash != call.request_hash)
    {
        fail(call.caller_route, call.correlation,
             Error{Errc::invalid_argument, call.command + ": the idempotency key was used for another request", {}, {}});
        return true;
    }
    same->caller_route = call.caller_route;
    same->correlation = call.correlation;
    return true;
}

Task<> Broker::route_keyed_call(Call call)
{
    if (joins_same(call)) { co_return; }
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
        else { answer_call(call, result.code, result.body); }
        co_return;
    }
    if (joins_same(call)) { co_return; } // it came while the journal was asked
    route_call(std::move(call));
}

void Broker::route_call(Call call)
{
    auto room = calls_.room_for(call);
    if (!room)
    {
        schema::BusPeerRefused peer = peer_of(call.identity);
        peer.tried = call.command;
        peer.reason = room.error().message;
        say_refused("quota", std::move(peer));
        fail(call.caller_route, call.correlation, room.error());
        return;
    }
    auto delivery = calls_.add(std::move(call));
    tick_every(busy_tick_ms);
    deliver(*calls_.find(*delivery));
}

void Broker::deliver(Call& call)
{
    const Registration& service = services_[call.service];
    if (service.route.empty()) { return; } // when it registers, see deliver_waiting
    auto room = quotas_.may_ask(service.route);
    if (!room)
    {
        Error error{Errc::resource_exhausted, call.service + " does not take the requests that wait for it", "see `dstack events --type service.`", room.error().details};
        fail_call(call.delivery, error);
        return;
    }
    call.delivered = true;
    call.delivered_us = steady_us();
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
        answer_call(*call, code, body);
        note_finished(*call, code, body);
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
    answer_call(*done, code, body);
    note_finished(*done, code, body);
}

void Broker::note_finished(const Call& call, std::string_view code, std::string_view body)
{
    const std::uint64_t now_us = steady_us();
    stats_.finished(call, code, now_us);
    if (call.key.empty() || !is_sampled(call.traceparent)) { return; }
    const std::uint64_t waited_until = call.delivered_us != 0 ? call.delivered_us : now_us;
    schema::CommandFinished event;
    event.command = call.command;
    event.service = call.service;
    event.caller = call.caller;
    event.code = code;
    if (code != wire::ok) { event.message = wire::error_from(code, body).message.substr(0, 512); }
    event.took_ms = (now_us - call.received_us) / 1000;
    event.waited_ms = (waited_until - call.received_us) / 1000;
    say(std::move(event), call.traceparent);
}

schema::BusStats::Reply Broker::statistics() const
{
    schema::BusStats::Reply reply;
    reply.version = DSTACK_VERSION;
    reply.time_ms = unix_ms();
    reply.epoch = journal_->epoch();
    reply.first_sequence = journal_->first();
    reply.last_sequence = journal_->last();
    reply.journal_error = journal_error_;
    reply.events_waiting = unanswered_.size();
    reply.calls_in_flight = calls_.size();
    reply.reads_running = quotas_.reads();
    reply.malformed = counters_.malformed;
    reply.ignored = counters_.ignored;
    reply.handshakes_failed = connections_.failed();
    reply.handshakes_abandoned = connections_.abandoned();
    reply.bytes_waiting = quotas_.waiting_bytes();
    stats_.fill(reply);
    fill_process(reply);
    const std::vector<std::string> routes = stats_.fill_peers(reply);
    for (std::size_t i = 0; i < routes.size(); ++i)
    {
        reply.peers[i].publishing = quotas_.events_of(routes[i]);
        reply.peers[i].calls = calls_.in_flight(routes[i]);
    }
    for (const auto& [name, registration] : services_)
    {
        schema::ServiceStats entry = stats_.of_service(name);
        entry.state = registration.route.empty() ? "down" : "up";
        entry.pid = registration.pid;
        entry.restarts = registration.restarts;
        entry.waiting = calls_.waiting_for(name).size();
        entry.working = calls_.all_of(name).size() - entry.waiting;
        reply.services.push_back(std::move(entry));
    }
    std::sort(reply.services.begin(), reply.services.end(), [](const auto& a, const auto& b) { return a.service < b.service; });
    return reply;
}

std::string Broker::serve_own(const Call& call)
{
    if (call.command == schema::BusStats::type.name) { return schema::to_json(statistics()); }
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
        entry.last_seen = registration.last_seen_ms == 0 ? std::string{} : rfc3339(registration.last_seen_ms);
        entry.restarts = registration.restarts;
        reply.services.push_back(std::move(entry));
    }
    std::sort(reply.services.begin(), reply.services.end(),
              [](const auto& a, const auto& b) { return a.service < b.service; });
    return schema::to_json(std::move(reply));
}

} // namespace dstack::bus
