// The broker's event stream: publish, commit in groups, tell, read back.
#include "bus/broker/broker.hpp"
#include "bus/broker/envelope.hpp"
#include "bus/schema/bus.hpp"
#include "bus/schema/catalog.hpp"
#include "shared/base/uuid.hpp"
#include "shared/log/log.hpp"
#include <nlohmann/json.hpp>

namespace dstack::bus
{

namespace
{
constexpr std::size_t cursors_per_answer = 256;
constexpr std::size_t max_own_refused = 1000; ///< the broker's own events that wait for a journal that fails

/// Empty, or what is wrong with an event as it came.
std::string_view fault_of(const EventHead& event, const schema::EventType* type, bool time_known)
{
    const std::string_view severity = event.severity;
    if (type == nullptr) { return "its type is not in the schema"; }
    if (event.id.empty() || event.id.size() > 64) { return "its id must be 1 to 64 bytes"; }
    if (event.subject.size() > 256) { return "its subject is longer than 256 bytes"; }
    if (severity != "debug" && severity != "info" && severity != "warning" && severity != "error") { return "its severity is not one"; }
    if (!time_known) { return "its time is not unix milliseconds"; }
    if (event.traceparent.size() > 128) { return "its traceparent is longer than 128 bytes"; }
    if (event.data.size() > wire::max_event_bytes) { return "its data is larger than 256 KiB"; }
    if (!is_json_object(event.data)) { return "its data is not a JSON object"; }
    return {};
}
} // namespace

void Broker::say(const schema::EventType& type, std::string_view subject, std::string_view data, std::string_view traceparent)
{
    const std::string id = uuid_v7();
    const EventHead head{.id = id, .type = type.name, .service = "bus", .subject = subject,
                         .severity = schema::to_string(type.severity), .time_ms = unix_ms(), .traceparent = traceparent, .data = data};
    enqueue(JournalEntry{{}, id, type.name, "bus", std::string{subject}, severity_rank(head.severity), head.time_ms, begin_envelope(head)});
}

void Broker::enqueue(JournalEntry entry)
{
    unanswered_.push_back(std::move(entry));
    if (!committing_) { scope_.spawn(commit_events()); }
}

void Broker::unpublished(const std::string& route, std::string_view id, const Error& error)
{
    send(route, {wire::version, wire::unpublished, id, to_string(error.code), wire::error_body(error)});
}

void Broker::on_publish(const Message& message)
{
    // publish, id, type, subject, severity, time_ms, traceparent, data
    const auto time_ms = wire::number(message.at(5));
    const EventHead head{.id = message.at(1), .type = message.at(2), .service = message.identity.service,
                         .subject = message.at(3), .severity = message.at(4), .time_ms = time_ms.value_or(0),
                         .traceparent = message.at(6), .data = message.at(7)};
    const schema::EventType* type = schema::find_event(head.type);
    Result<Done> allowed = Done{};
    if (const std::string_view fault = fault_of(head, type, time_ms.has_value()); !fault.empty())
    {
        allowed = Error{Errc::invalid_argument, "event " + std::string{head.type.substr(0, 64)} + ": " + std::string{fault}, {}, {}};
    }
    else { allowed = may_publish(message.identity, *type); }
    if (!allowed)
    {
        refuse(message, "publish " + std::string{head.type.substr(0, 64)}, allowed.error());
        unpublished(message.route, head.id, allowed.error());
        return;
    }
    auto room = quotas_.begin_event(message.route, head.data.size());
    if (!room)
    {
        refuse(message, "publish " + std::string{type->name}, room.error());
        unpublished(message.route, head.id, room.error());
        return;
    }
    JournalEntry entry{message.route, std::string{head.id}, type->name, message.identity.service, std::string{head.subject},
                       severity_rank(head.severity), head.time_ms, begin_envelope(head)};
    entry.charged_bytes = head.data.size();
    enqueue(std::move(entry));
}

Task<> Broker::commit_events()
{
    // One batch is on its way to the disk while the next one gathers.
    committing_ = true;
    co_await next_turn(loop_);
    while (!unanswered_.empty())
    {
        const auto batch = std::make_shared<std::vector<JournalEntry>>(std::exchange(unanswered_, {}));
        const std::uint64_t begun_us = steady_us();
        auto appended = co_await journal_->append(batch);
        if (appended) { stats_.committed(batch->size(), steady_us() - begun_us); }
        settle(*batch, appended);
        note_journal(appended, batch->size());
        if (journal_->over_full() && !trimming_) { scope_.spawn(trim_journal()); }
    }
    committing_ = false;
}

void Broker::note_journal(const Result<Done>& appended, std::size_t events)
{
    if (!appended)
    {
        if (journal_error_.empty())
        {
            journal_failed_ms_ = unix_ms();
            log::error("events not journalled", {{"count", events}, {"error", appended.error().message}});
        }
        journal_error_ = appended.error().message;
        journal_refused_ += events;
        if (on_health_) { on_health_("events are refused: " + journal_error_); }
        return;
    }
    if (journal_error_.empty()) { return; }
    schema::BusJournalRecovered event;
    event.failed_ms = unix_ms() - journal_failed_ms_;
    event.refused = std::exchange(journal_refused_, 0);
    event.error = std::exchange(journal_error_, {});
    log::info("events are journalled again", {{"failed_ms", event.failed_ms}, {"refused", event.refused}});
    say(std::move(event));
    if (on_health_) { on_health_("serving"); }
}

void Broker::retry_own_events()
{
    if (own_refused_.empty() || committing_) { return; }
    for (JournalEntry& entry : std::exchange(own_refused_, {})) { enqueue(std::move(entry)); }
}

void Broker::settle(std::vector<JournalEntry>& batch, const Result<Done>& appended)
{
    const std::string epoch = std::to_string(journal_->epoch()) + ':';
    struct Answer
    {
        std::string pairs;
        std::size_t count = 0;
    };
    std::unordered_map<std::string_view, Answer> answers;
    const auto tell = [this](std::string_view publisher, Answer& answer)
    { send(std::string{publisher}, {wire::version, wire::published, std::exchange(answer, {}).pairs}); };
    for (JournalEntry& entry : batch)
    {
        if (appended && !entry.duplicate) { live_stream_.add(entry); }
        if (entry.publisher.empty()) // the broker's own: nobody else would send it again
        {
            if (!appended && own_refused_.size() < max_own_refused) { own_refused_.push_back(std::move(entry)); }
            continue;
        }
        quotas_.end_event(entry.publisher, entry.charged_bytes);
        if (!appended)
        {
            unpublished(entry.publisher, entry.id, appended.error());
            continue;
        }
        Answer& answer = answers[entry.publisher];
        if (answer.count > 0) { answer.pairs += '\n'; }
        answer.pairs.append(entry.id).append(1, '\n').append(epoch).append(std::to_string(entry.sequence));
        if (++answer.count >= cursors_per_answer) { tell(entry.publisher, answer); }
    }
    for (auto& [publisher, answer] : answers)
    {
        if (answer.count > 0) { tell(publisher, answer); }
    }
}

Task<> Broker::trim_journal()
{
    trimming_ = true;
    for (bool more = true; more;)
    {
        const std::uint64_t now = unix_ms();
        auto trimmed = co_await journal_->trim(now);
        if (!trimmed) { log::warn("journal not trimmed", {{"error", trimmed.error().message}}); }
        more = trimmed && *trimmed;
    }
    trimming_ = false;
}

void Broker::send_head() { live_stream_.head(journal_->last(), journal_->epoch()); }

void Broker::on_subscriptions()
{
    const bool somebody_new = live_stream_.take_subscriptions([this](zmq::message_t& frame) { note_subscription(frame); });
    if (somebody_new) { send_head(); } // it learns at once how far the journal is
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
                                 "the journal was replaced: the cursor is of epoch " + std::to_string(*epoch), ""});
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
    send(route, {wire::version, wire::events, correlation, std::to_string(journal_->epoch()), std::to_string(page->next), std::to_string(page->last),
                 std::to_string(page->gap_from), std::to_string(page->gap_to), page->gap_reason, page->lines});
    stats_.read(route, page->last > page->next ? page->last - page->next : 0);
}

} // namespace dstack::bus
