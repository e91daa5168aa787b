#include "bus/broker/journal.hpp"
#include "shared/base/time.hpp"
#include <array>
#include <nlohmann/json.hpp>

namespace dstack::bus
{

namespace
{

const std::vector<std::string> migrations{
    R"sql(
CREATE TABLE events(
    sequence INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, type TEXT NOT NULL, source TEXT NOT NULL,
    subject TEXT NOT NULL, severity INTEGER NOT NULL, time_ms INTEGER NOT NULL, envelope TEXT NOT NULL);
CREATE TABLE gaps(first INTEGER PRIMARY KEY, last INTEGER NOT NULL, reason TEXT NOT NULL);
CREATE TABLE facts(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO facts VALUES('epoch', unixepoch());
CREATE TABLE services(name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE results(
    scope TEXT NOT NULL, key TEXT NOT NULL, request_hash TEXT NOT NULL, code TEXT NOT NULL, body TEXT NOT NULL,
    time_ms INTEGER NOT NULL, PRIMARY KEY(scope, key)) WITHOUT ROWID;
CREATE INDEX results_by_time ON results(time_ms);
)sql"};

constexpr std::uint64_t keep_results_ms = 24ULL * 3600 * 1000;
constexpr std::uint64_t retention_slack = 1000; ///< delete in groups, not one by one

void append_json_string(std::string& out, std::string_view text)
{
    const nlohmann::json value = std::string{text};
    out += value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string make_envelope(const PendingEvent& event, std::uint64_t epoch, std::uint64_t sequence)
{
    std::string out = R"({"specversion":"1.0","id":)";
    append_json_string(out, event.id);
    out += R"(,"source":)";
    append_json_string(out, "/dstack/" + event.service);
    out += R"(,"type":)";
    append_json_string(out, event.type);
    out += R"(,"subject":)";
    append_json_string(out, event.subject);
    out += R"(,"time":")" + rfc3339(event.time_ms) + R"(","datacontenttype":"application/json","sequence":")" +
           std::to_string(epoch) + ':' + std::to_string(sequence) + R"(","severity":)";
    append_json_string(out, event.severity);
    if (!event.traceparent.empty())
    {
        out += R"(,"traceparent":)";
        append_json_string(out, event.traceparent);
    }
    ((out += R"(,"data":)") += event.data) += '}';
    return out;
}

Result<std::int64_t> one_number(state::Connection& db, std::string_view sql)
{
    auto statement = db.query(sql);
    if (!statement) { return std::move(statement).error(); }
    auto row = statement->step();
    if (!row) { return std::move(row).error(); }
    return *row ? statement->column_int(0) : 0;
}

struct Opening
{
    std::uint64_t epoch = 0;
    std::uint64_t first = 1;
    std::uint64_t last = 0;
    std::vector<std::string> services;
};

/// The few facts that are needed before the loop runs, over a connection of their own.
Result<Opening> read_opening(const std::string& path)
{
    auto db = state::Connection::open(path);
    if (!db) { return std::move(db).error(); }
    auto epoch = one_number(**db, "SELECT value FROM facts WHERE name = 'epoch'");
    if (!epoch) { return std::move(epoch).error(); }
    auto first = one_number(**db, "SELECT coalesce(min(sequence), 1) FROM events");
    if (!first) { return std::move(first).error(); }
    auto last = one_number(**db, "SELECT coalesce(max(sequence), 0) FROM events");
    if (!last) { return std::move(last).error(); }
    auto services = (*db)->query("SELECT name FROM services ORDER BY name");
    if (!services) { return std::move(services).error(); }
    Opening out{static_cast<std::uint64_t>(*epoch), static_cast<std::uint64_t>(*first), static_cast<std::uint64_t>(*last), {}};
    for (;;)
    {
        auto row = services->step();
        if (!row) { return std::move(row).error(); }
        if (!*row) { return out; }
        out.services.push_back(services->column_text(0));
    }
}

Result<std::vector<JournalEvent>> insert_all(state::Connection& db, const std::vector<PendingEvent>& batch,
                                             std::uint64_t epoch, std::uint64_t last)
{
    std::vector<JournalEvent> out;
    out.reserve(batch.size());
    auto insert = db.prepare("INSERT INTO events VALUES(?,?,?,?,?,?,?,?) ON CONFLICT(id) DO NOTHING");
    if (!insert) { return std::move(insert).error(); }
    for (const PendingEvent& event : batch)
    {
        JournalEvent entry{last + 1, false, event.type, make_envelope(event, epoch, last + 1)};
        insert->reset();
        const std::array<state::Value, 8> values{entry.sequence, event.id, event.type, event.service, event.subject,
                                                 severity_rank(event.severity), event.time_ms, entry.envelope};
        for (std::size_t i = 0; i < values.size(); ++i)
        {
            auto bound = insert->bind(static_cast<int>(i) + 1, values[i]);
            if (!bound) { return std::move(bound).error(); }
        }
        auto stepped = insert->step();
        if (!stepped) { return std::move(stepped).error(); }
        if (db.changes() == 0)
        {
            auto old = db.query("SELECT sequence FROM events WHERE id = ?", {event.id});
            if (!old) { return std::move(old).error(); }
            auto row = old->step();
            if (!row) { return std::move(row).error(); }
            entry.sequence = static_cast<std::uint64_t>(old->column_int(0));
            entry.duplicate = true;
            entry.envelope.clear();
        }
        else { ++last; }
        out.push_back(std::move(entry));
    }
    return out;
}

} // namespace

int severity_rank(std::string_view severity)
{
    if (severity == "debug") { return 0; }
    if (severity == "info") { return 1; }
    if (severity == "warning") { return 2; }
    return 3;
}

Result<std::unique_ptr<Journal>> Journal::open(Loop& loop, const std::string& path, std::uint64_t max_events)
{
    auto database = state::Database::open(loop, path, migrations);
    if (!database) { return std::move(database).error().within("event journal"); }
    auto opening = read_opening(path);
    if (!opening) { return std::move(opening).error().within("event journal " + path); }
    std::unique_ptr<Journal> journal{new Journal};
    journal->database_ = std::move(*database);
    journal->epoch_ = opening->epoch;
    journal->first_ = opening->first;
    journal->last_ = opening->last;
    journal->services_ = std::move(opening->services);
    journal->max_events_ = max_events;
    return journal;
}

Task<Result<std::vector<JournalEvent>>> Journal::append(std::vector<PendingEvent> batch)
{
    const std::uint64_t last = last_;
    const std::uint64_t first = first_;
    const std::uint64_t keep = max_events_;
    auto insert = [batch = std::move(batch), epoch = epoch_, last, first, keep](
                      state::Connection& db) -> Result<std::vector<JournalEvent>>
    {
        auto out = insert_all(db, batch, epoch, last);
        if (!out) { return out; }
        const std::uint64_t now_last = last + out->size();
        if (keep > 0 && now_last > first + keep + retention_slack)
        {
            const std::uint64_t until = now_last - keep;
            auto deleted = db.execute("DELETE FROM events WHERE sequence <= ?", {until});
            if (!deleted) { return std::move(deleted).error(); }
            auto noted = db.execute("INSERT INTO gaps VALUES(?, ?, 'retention')", {first, until});
            if (!noted) { return std::move(noted).error(); }
        }
        return out;
    };
    auto out = co_await database_->run(std::move(insert));
    if (!out) { co_return std::move(out).error().within("event journal"); }
    for (const JournalEvent& event : *out) { last_ = event.sequence > last_ ? event.sequence : last_; }
    if (keep > 0 && last + out->size() > first + keep + retention_slack) { first_ = last + out->size() - keep + 1; }
    co_return out;
}

Task<Result<JournalPage>> Journal::read(JournalQuery query)
{
    auto select = [query, first = first_](state::Connection& db) -> Result<JournalPage>
    {
        JournalPage page;
        page.next = query.after;
        if (query.after + 1 < first && query.since_ms == 0)
        {
            page.gap_from = query.after + 1;
            page.gap_to = first - 1;
            page.gap_reason = "retention";
            page.next = page.gap_to;
        }
        auto rows = db.query("SELECT sequence, type, envelope FROM events WHERE sequence > ?1 AND time_ms >= ?2"
                             " AND severity >= ?3 AND (?4 = '' OR substr(type, 1, length(?4)) = ?4)"
                             " AND (?5 = '' OR subject = ?5) AND (?6 = '' OR source = ?6) ORDER BY sequence LIMIT ?7",
                             {page.next, query.since_ms, query.min_severity, query.type_prefix, query.subject, query.source,
                              query.limit});
        if (!rows) { return std::move(rows).error(); }
        std::size_t bytes = 0;
        bool ended = false;
        while (bytes < 2 * 1024 * 1024)
        {
            auto row = rows->step();
            if (!row) { return std::move(row).error(); }
            if (!*row)
            {
                ended = true;
                break;
            }
            JournalEvent event{static_cast<std::uint64_t>(rows->column_int(0)), false, rows->column_text(1), rows->column_text(2)};
            bytes += event.envelope.size();
            page.next = event.sequence;
            page.events.push_back(std::move(event));
        }
        auto last = one_number(db, "SELECT coalesce(max(sequence), 0) FROM events");
        if (!last) { return std::move(last).error(); }
        page.last = static_cast<std::uint64_t>(*last);
        // All that matches has been given: the reader need not look at the rest again.
        if (ended && page.events.size() < query.limit && page.last > page.next) { page.next = page.last; }
        return page;
    };
    auto page = co_await database_->run(std::move(select));
    if (!page) { co_return std::move(page).error().within("event journal"); }
    co_return page;
}

Task<Result<Done>> Journal::remember_service(std::string service)
{
    for (const std::string& known : services_)
    {
        if (known == service) { co_return Done{}; }
    }
    services_.push_back(service);
    auto insert = [service](state::Connection& db) -> Result<Done>
    { return db.execute("INSERT OR IGNORE INTO services VALUES(?)", {service}); };
    co_return co_await database_->run(std::move(insert));
}

Task<Result<std::optional<KeptResult>>> Journal::find_result(std::string scope, std::string key)
{
    auto select = [scope = std::move(scope), key = std::move(key)](state::Connection& db) -> Result<std::optional<KeptResult>>
    {
        auto rows = db.query("SELECT request_hash, code, body FROM results WHERE scope = ? AND key = ?", {scope, key});
        if (!rows) { return std::move(rows).error(); }
        auto row = rows->step();
        if (!row) { return std::move(row).error(); }
        if (!*row) { return std::optional<KeptResult>{}; }
        return std::optional<KeptResult>{KeptResult{rows->column_text(0), rows->column_text(1), rows->column_text(2)}};
    };
    co_return co_await database_->run(std::move(select));
}

Task<Result<Done>> Journal::keep_result(std::string scope, std::string key, KeptResult result, std::uint64_t now_ms)
{
    auto insert = [scope = std::move(scope), key = std::move(key), result = std::move(result),
                   now_ms](state::Connection& db) -> Result<Done>
    {
        const std::uint64_t oldest = now_ms > keep_results_ms ? now_ms - keep_results_ms : 0;
        auto expired = db.execute("DELETE FROM results WHERE time_ms < ?", {oldest});
        if (!expired) { return expired; }
        return db.execute("INSERT OR REPLACE INTO results VALUES(?,?,?,?,?,?)",
                          {scope, key, result.request_hash, result.code, result.body, now_ms});
    };
    co_return co_await database_->run(std::move(insert));
}

} // namespace dstack::bus
