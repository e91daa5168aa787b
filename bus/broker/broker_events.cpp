// The broker's event stream: publish, commit in groups, tell, read back.
#include "bus/broker/broker.hpp"
#include "bus/schema/catalog.hpp"
#include "shared/crypto/bytes.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/log/log.hpp"
#include <nlohmann/json.hpp>

namespace dstack::bus
{

namespace
{
constexpr int batch_per_turn = 256;                 ///< messages handled before others get a turn
} // namespace

void Broker::say(const schema::EventType& type, std::string subject, std::string data)
{
    PendingEvent pending;
    pending.id = crypto::to_hex(crypto::random_bytes(16));
    pending.type = type.name;
    pending.service = "bus";
    pending.subject = std::move(subject);
    pending.severity = schema::to_string(type.severity);
    pending.time_ms = unix_ms();
    pending.data = std::move(data);
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
    auto room = quotas_.begin_event(message.route, data.size());
    if (!room)
    {
        refuse(message, "publish " + std::string{type->name}, room.error());
        answer_error(room.error());
        return;
    }
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
            if (!route.empty()) { quotas_.end_event(route, batch[i].event.data.size()); }
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
    for (int i = 0; i < batch_per_turn && wire::receive(live_, frames); ++i)
    {
        any = true;
        if (!frames.empty()) { note_subscription(frames[0]); }
    }
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
    auto room = quotas_.begin_read(message.route);
    if (!room)
    {
        refuse(message, "read", room.error());
        fail_read(room.error());
        return;
    }
    scope_.spawn(read_events(message.route, correlation, std::move(query)));
}

Task<> Broker::read_events(std::string route, std::string correlation, JournalQuery query)
{
    auto page = co_await journal_->read(std::move(query));
    quotas_.end_read(route);
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
    account(route, frames);
    wire::send(commands_, frames);
}

} // namespace dstack::bus
