#include "bus/broker/journal.hpp"
#include "bus/broker/envelope.hpp"
#include "bus/protocol/frames.hpp"
#include "shared/base/time.hpp"
#include <algorithm>
#include <array>
#include <sys/resource.h>
#include <unistd.h>

namespace dstack::bus
{

namespace
{

constexpr std::uint64_t keep_results_ms = 24ULL * 3600 * 1000;
constexpr std::uint64_t trim_chunk = 2000;   ///< events removed in one transaction: others get their turn between two
constexpr std::uint64_t count_slack = 1000;  ///< above max_events, so that not every append removes one
constexpr std::uint64_t tick_ms = 10'000;    ///< between two entries of `ticks`

/// What is read back is not urgent: the thread that reads (and does nothing else) leaves the cores to those that commit and tell.
void give_way()
{
    constexpr int niceness = 10;
    thread_local const int given = ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), niceness);
    static_cast<void>(given); // where it may not, it reads as before
}

/// The sequence of an id that the journal has.
Result<std::uint64_t> sequence_of(state::Connection& db, const std::string& id)
{
    return one_number(db, "SELECT sequence FROM events WHERE id = ?", {id});
}

Result<Done> insert_all(state::Connection& db, std::vector<JournalEntry>& batch, std::uint64_t epoch, std::uint64_t last)
{
    auto insert = db.prepare("INSERT INTO events VALUES(?,?,?,?,?,?,?,?,?) ON CONFLICT(id) DO NOTHING");
    if (!insert) { return std::move(insert).error(); }
    for (JournalEntry& entry : batch)
    {
        if (entry.sequence == 0) { entry.unfinished = entry.envelope.size(); }
        else { entry.envelope.resize(entry.unfinished); }
        entry.sequence = last + 1;
        end_envelope(entry.envelope, epoch, entry.sequence);
        insert->reset();
        const std::array<state::Value, 9> values{entry.sequence, entry.id,      entry.type,     entry.service, entry.subject,
                                                 entry.severity, entry.time_ms, entry.envelope, checksum(entry.envelope)};
        for (std::size_t i = 0; i < values.size(); ++i)
        {
            auto bound = insert->bind_borrowed(static_cast<int>(i) + 1, values[i]);
            if (!bound) { return bound; }
        }
        auto stepped = insert->step();
        if (!stepped) { return std::move(stepped).error(); }
        if (db.changes() > 0)
        {
            ++last;
            continue;
        }
        auto known = sequence_of(db, entry.id);
        if (!known) { return std::move(known).error(); }
        entry.sequence = *known;
        entry.duplicate = true;
        entry.envelope.resize(entry.unfinished);
    }
    return Done{};
}

struct Gap
{
    std::uint64_t first = 0; ///< 0: none
    std::uint64_t last = 0;
    std::string reason;
};

/// The first gap that reaches beyond `after`.
Result<Gap> gap_after(state::Connection& db, std::uint64_t after)
{
    auto rows = db.query("SELECT first, last, reason FROM gaps WHERE last > ? ORDER BY first LIMIT 1", {after});
    if (!rows) { return std::move(rows).error(); }
    auto row = rows->step();
    if (!row) { return std::move(row).error(); }
    if (!*row) { return Gap{}; }
    return Gap{static_cast<std::uint64_t>(rows->column_int(0)), static_cast<std::uint64_t>(rows->column_int(1)), rows->column_text(2)};
}

/// Where a reader of what was said since a time begins: nothing before it was committed at that time or later.
Result<std::uint64_t> start_of(state::Connection& db, std::uint64_t since_ms)
{
    return one_number(db, "SELECT coalesce(max(sequence), 1) - 1 FROM ticks WHERE sequence <"
                          " (SELECT coalesce((SELECT sequence FROM ticks WHERE time_ms >= ? ORDER BY sequence LIMIT 1), 9e18))",
                      {since_ms});
}

Result<state::Statement> select_events(state::Connection& db, const JournalQuery& query, std::uint64_t after, std::uint64_t until)
{
    const bool all = query.type_prefix.empty() && query.subject.empty() && query.source.empty() && query.min_severity == 0 &&
                     query.since_ms == 0;
    if (all)
    {
        return db.query("SELECT sequence, envelope, checksum FROM events WHERE sequence > ? AND sequence <= ? ORDER BY sequence LIMIT ?",
                        {after, until, query.limit});
    }
    return db.query("SELECT sequence, envelope, checksum FROM events WHERE sequence > ?1 AND sequence <= ?2 AND time_ms >= ?3"
                    " AND severity >= ?4 AND (?5 = '' OR substr(type, 1, length(?5)) = ?5)"
                    " AND (?6 = '' OR subject = ?6) AND (?7 = '' OR source = ?7) ORDER BY sequence LIMIT ?8",
                    {after, until, query.since_ms, query.min_severity, query.type_prefix, query.subject, query.source, query.limit});
}

Result<JournalPage> read_page(state::Connection& db, const std::string& path, const JournalQuery& query)
{
    JournalPage page;
    page.next = query.after;
    auto last = one_number(db, "SELECT max((SELECT coalesce(max(sequence), 0) FROM events), (SELECT coalesce(max(last), 0) FROM gaps))");
    if (!last) { return std::move(last).error(); }
    page.last = *last;
    if (query.since_ms > 0 && query.after == 0)
    {
        auto start = start_of(db, query.since_ms);
        if (!start) { return std::move(start).error(); }
        auto trimmed = one_number(db, "SELECT value FROM facts WHERE name = 'trimmed_ms'");
        if (!trimmed) { return std::move(trimmed).error(); }
        if (query.since_ms > *trimmed) { page.next = *start; } // nothing that was asked for was removed
    }
    auto gap = gap_after(db, page.next);
    if (!gap) { return std::move(gap).error(); }
    if (gap->first > 0 && gap->first <= page.next + 1)
    {
        page.gap_from = page.next + 1;
        page.gap_to = page.next = gap->last;
        page.gap_reason = gap->reason;
        gap = gap_after(db, page.next);
        if (!gap) { return std::move(gap).error(); }
    }
    const std::uint64_t until = gap->first > 0 ? gap->first - 1 : page.last;
    auto rows = select_events(db, query, page.next, until);
    if (!rows) { return std::move(rows).error(); }
    for (std::size_t count = 0; page.lines.size() < wire::max_page_bytes; ++count)
    {
        auto row = rows->step();
        if (!row) { return std::move(row).error(); }
        if (!*row)
        {
            if (count < query.limit) { page.next = std::max(page.next, until); } // all that matches up to there was given
            break;
        }
        const auto sequence = static_cast<std::uint64_t>(rows->column_int(0));
        const std::string_view envelope = rows->column_view(1);
        if (!rows->is_null(2) && rows->column_int(2) != checksum(envelope)) { return damaged_event(path, sequence, "is not what was written"); }
        (page.lines += envelope) += '\n';
        page.next = sequence;
    }
    return page;
}

/// How far the oldest events hold `excess` bytes, one chunk at most.
Result<std::uint64_t> sequence_behind(state::Connection& db, std::uint64_t first, std::uint64_t excess)
{
    constexpr std::uint64_t row_bytes = 250; ///< about what an event takes besides its envelope
    auto rows = db.query("SELECT sequence, length(envelope) FROM events WHERE sequence >= ? ORDER BY sequence LIMIT ?", {first, trim_chunk});
    if (!rows) { return std::move(rows).error(); }
    std::uint64_t until = first;
    for (std::uint64_t held = 0; held < excess;)
    {
        auto row = rows->step();
        if (!row) { return std::move(row).error(); }
        if (!*row) { break; }
        until = static_cast<std::uint64_t>(rows->column_int(0));
        held += static_cast<std::uint64_t>(rows->column_int(1)) + row_bytes;
    }
    return until;
}

/// The newest sequence that retention does not keep, at most one chunk beyond `first`; 0: it keeps all.
Result<std::uint64_t> trim_until(state::Connection& db, const Retention& keep, std::uint64_t first, std::uint64_t last, std::uint64_t now_ms)
{
    std::uint64_t until = 0;
    if (keep.max_events > 0 && last > first + keep.max_events) { until = last - keep.max_events; }
    if (keep.max_age_ms > 0 && now_ms > keep.max_age_ms)
    {
        auto old = one_number(db, "SELECT coalesce(max(sequence), 1) - 1 FROM ticks WHERE time_ms < ?", {now_ms - keep.max_age_ms});
        if (!old) { return old; }
        until = std::max(until, *old);
    }
    if (keep.max_bytes > 0)
    {
        auto used = one_number(db, "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size");
        if (!used) { return used; }
        if (*used > keep.max_bytes)
        {
            // Half of it, again and again: an event takes more of its pages than its bytes tell.
            auto behind = sequence_behind(db, first, (*used - keep.max_bytes + 1) / 2);
            if (!behind) { return behind; }
            until = std::max(until, *behind);
        }
    }
    until = std::min({until, first + trim_chunk, last > 0 ? last - 1 : 0});
    return until < first ? 0 : until;
}

} // namespace

int severity_rank(std::string_view severity)
{
    if (severity == "debug") { return 0; }
    if (severity == "info") { return 1; }
    if (severity == "warning") { return 2; }
    return 3;
}

Result<std::unique_ptr<Journal>> Journal::open(Loop& loop, const std::string& path, Retention retention)
{
    // No quick_check: it reads the whole file. Each event carries a checksum, which is looked at when it is read.
    state::DatabaseOptions options{.quick_check = false, .page_size = 8'192, .background_checkpoint = true};
    auto writer = state::Database::open(loop, path, journal_migrations, options);
    if (!writer) { return std::move(writer).error().within("event journal"); }
    auto high_water = HighWater::open(path + ".acknowledged");
    if (!high_water) { return std::move(high_water).error().within("event journal"); }
    auto opening = open_journal_file(path, *high_water);
    if (!opening) { return std::move(opening).error().within("event journal " + path); }
    options = {.quick_check = false, .read_only = true};
    auto reader = state::Database::open(loop, path, journal_migrations, options);
    if (!reader) { return std::move(reader).error().within("event journal"); }

    std::unique_ptr<Journal> journal{new Journal};
    journal->path_ = path;
    journal->retention_ = retention;
    journal->writer_ = std::move(*writer);
    journal->reader_ = std::move(*reader);
    journal->high_water_ = std::move(*high_water);
    journal->epoch_ = opening->epoch;
    journal->first_ = opening->first;
    journal->last_ = opening->last;
    journal->lost_tail_ = opening->lost;
    journal->services_ = std::move(opening->services);
    return journal;
}

Task<Result<Done>> Journal::append(Batch batch)
{
    const std::uint64_t now = unix_ms();
    const bool tick = now > ticked_ms_ + tick_ms || now < ticked_ms_;
    auto insert = [batch, epoch = epoch_, last = last_, tick, now](state::Connection& db) -> Result<Done>
    {
        auto inserted = insert_all(db, *batch, epoch, last);
        if (!inserted || !tick) { return inserted; }
        return db.execute("INSERT OR IGNORE INTO ticks VALUES(?, ?)", {last + 1, now});
    };
    auto appended = co_await writer_->run(insert);
    if (!appended) { co_return std::move(appended).error().within("event journal"); }
    for (const JournalEntry& entry : *batch)
    {
        if (!entry.duplicate) { last_ = entry.sequence; }
    }
    if (tick) { ticked_ms_ = now; }
    high_water_.set(epoch_, last_);
    co_return Done{};
}

Task<Result<JournalPage>> Journal::read(JournalQuery query)
{
    auto select = [query = std::move(query), path = path_](state::Connection& db)
    {
        give_way();
        return read_page(db, path, query);
    };
    auto page = co_await reader_->run(std::move(select));
    if (!page) { co_return std::move(page).error().within("event journal"); }
    co_return page;
}

bool Journal::over_full() const
{
    return retention_.max_events > 0 && last_ > first_ + retention_.max_events + count_slack;
}

Task<Result<bool>> Journal::trim(std::uint64_t now_ms)
{
    auto remove = [keep = retention_, first = first_, last = last_, now_ms](state::Connection& db) -> Result<std::uint64_t>
    {
        auto until = trim_until(db, keep, first, last, now_ms);
        if (!until || *until == 0) { return until; }
        auto trimmed = db.execute("INSERT OR REPLACE INTO facts SELECT 'trimmed_ms', max(coalesce((SELECT value FROM facts WHERE"
                                  " name = 'trimmed_ms'), 0), coalesce(max(time_ms), 0)) FROM events WHERE sequence <= ?", {*until});
        if (!trimmed) { return std::move(trimmed).error(); }
        for (const std::string_view sql : {"DELETE FROM events WHERE sequence <= ?", "DELETE FROM ticks WHERE sequence < ?",
                                           "DELETE FROM gaps WHERE last <= ?", "INSERT OR REPLACE INTO gaps VALUES(1, ?, 'retention')"})
        {
            auto done = db.execute(sql, {*until});
            if (!done) { return std::move(done).error(); }
        }
        return until;
    };
    auto until = co_await writer_->run(remove);
    if (!until) { co_return std::move(until).error().within("event journal"); }
    if (*until == 0) { co_return false; }
    const std::uint64_t removed = *until + 1 - first_;
    first_ = *until + 1;
    co_return removed >= trim_chunk || retention_.max_bytes > 0; // how many bytes that was shows only now
}

Task<Result<Done>> Journal::remember_service(std::string service)
{
    if (std::find(services_.begin(), services_.end(), service) != services_.end()) { co_return Done{}; }
    services_.push_back(service);
    auto insert = [service](state::Connection& db) -> Result<Done>
    { return db.execute("INSERT OR IGNORE INTO services VALUES(?)", {service}); };
    co_return co_await writer_->run(std::move(insert));
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
    co_return co_await reader_->run(std::move(select));
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
    co_return co_await writer_->run(std::move(insert));
}

} // namespace dstack::bus
