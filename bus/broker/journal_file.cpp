#include "bus/broker/journal_file.hpp"
#include "shared/state/database.hpp"
#include <atomic>
#include <cerrno>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace dstack::bus
{

const std::vector<std::string> journal_migrations{
    R"sql(
CREATE TABLE events(
    sequence INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, type TEXT NOT NULL, source TEXT NOT NULL,
    subject TEXT NOT NULL, severity INTEGER NOT NULL, time_ms INTEGER NOT NULL, envelope TEXT NOT NULL);
CREATE TABLE gaps(first INTEGER PRIMARY KEY, last INTEGER NOT NULL, reason TEXT NOT NULL);
CREATE TABLE facts(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO facts VALUES('epoch', CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER));
CREATE TABLE services(name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE results(
    scope TEXT NOT NULL, key TEXT NOT NULL, request_hash TEXT NOT NULL, code TEXT NOT NULL, body TEXT NOT NULL,
    time_ms INTEGER NOT NULL, PRIMARY KEY(scope, key)) WITHOUT ROWID;
CREATE INDEX results_by_time ON results(time_ms);
)sql",
    // ticks: the first sequence that was committed at or after a time; one every few seconds, for reading from a time.
    R"sql(
ALTER TABLE events ADD COLUMN checksum INTEGER;
CREATE TABLE ticks(sequence INTEGER PRIMARY KEY, time_ms INTEGER NOT NULL);
)sql"};

std::int64_t checksum(std::string_view envelope)
{
    return static_cast<std::int64_t>(XXH3_64bits(envelope.data(), envelope.size()));
}

Error damaged_event(const std::string& path, std::uint64_t sequence, std::string_view what)
{
    return Error{Errc::data_loss, "event journal " + path + ": event " + std::to_string(sequence) + " " + std::string{what},
                 "restore the journal from a backup, or move it away to begin a new one", {}};
}

struct HighWater::Cell
{
    std::atomic<std::uint64_t> epoch;
    std::atomic<std::uint64_t> sequence;
};

HighWater::HighWater(HighWater&& other) noexcept : cell_(std::exchange(other.cell_, nullptr)) {}
HighWater& HighWater::operator=(HighWater&& other) noexcept
{
    std::swap(cell_, other.cell_);
    return *this;
}
HighWater::~HighWater()
{
    if (cell_ != nullptr) { ::munmap(cell_, sizeof(Cell)); }
}

Result<HighWater> HighWater::open(const std::string& path)
{
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) { return errno_error("open " + path, errno); }
    // Allocated now: a store into a hole of a full disk would be a signal, not an error.
    const int unallocated = ::posix_fallocate(fd, 0, sizeof(Cell));
    void* memory = unallocated != 0 ? MAP_FAILED : ::mmap(nullptr, sizeof(Cell), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    const int error = unallocated != 0 ? unallocated : errno;
    ::close(fd);
    if (memory == MAP_FAILED) { return errno_error("map " + path, error); }
    HighWater out;
    out.cell_ = static_cast<Cell*>(memory);
    return out;
}

std::uint64_t HighWater::of(std::uint64_t epoch) const { return cell_->epoch == epoch ? cell_->sequence.load() : 0; }

void HighWater::set(std::uint64_t epoch, std::uint64_t sequence)
{
    if (cell_->epoch != epoch)
    {
        cell_->sequence = 0; // first: a death between the two must not give the new epoch the old sequence
        cell_->epoch = epoch;
    }
    cell_->sequence = sequence;
}

Result<std::uint64_t> one_number(state::Connection& db, std::string_view sql, std::initializer_list<state::Value> values)
{
    auto statement = db.query(sql, values);
    if (!statement) { return std::move(statement).error(); }
    auto row = statement->step();
    if (!row) { return std::move(row).error(); }
    return *row ? static_cast<std::uint64_t>(statement->column_int(0)) : 0;
}

namespace
{
constexpr std::uint64_t verified_tail = 1000; ///< events at the end that are read at each start

Result<Done> verify_tail(state::Connection& db, const std::string& path, std::uint64_t last)
{
    const std::uint64_t from = last > verified_tail ? last - verified_tail : 0;
    auto rows = db.query("SELECT sequence, envelope, checksum FROM events WHERE sequence > ? ORDER BY sequence", {from});
    if (!rows) { return std::move(rows).error(); }
    for (;;)
    {
        auto row = rows->step();
        if (!row) { return std::move(row).error(); }
        if (!*row) { return Done{}; }
        if (!rows->is_null(2) && rows->column_int(2) != checksum(rows->column_view(1)))
        {
            return damaged_event(path, static_cast<std::uint64_t>(rows->column_int(0)), "is not what was written");
        }
    }
}
} // namespace

Result<JournalOpening> open_journal_file(const std::string& path, const HighWater& high_water)
{
    auto opened = state::Connection::open(path);
    if (!opened) { return std::move(opened).error(); }
    state::Connection& db = **opened;
    JournalOpening out;
    const std::pair<std::uint64_t*, std::string_view> numbers[] = {
        {&out.epoch, "SELECT value FROM facts WHERE name = 'epoch'"},
        {&out.first, "SELECT coalesce(min(sequence), 1 + (SELECT coalesce(max(last), 0) FROM gaps)) FROM events"},
        {&out.last, "SELECT max((SELECT coalesce(max(sequence), 0) FROM events), (SELECT coalesce(max(last), 0) FROM gaps))"}};
    for (const auto& [number, sql] : numbers)
    {
        auto value = one_number(db, sql);
        if (!value) { return std::move(value).error(); }
        *number = *value;
    }
    auto services = db.query("SELECT name FROM services ORDER BY name");
    if (!services) { return std::move(services).error(); }
    for (;;)
    {
        auto row = services->step();
        if (!row) { return std::move(row).error(); }
        if (!*row) { break; }
        out.services.push_back(services->column_text(0));
    }
    auto intact = verify_tail(db, path, out.last);
    if (!intact) { return std::move(intact).error(); }
    const std::uint64_t acknowledged = high_water.of(out.epoch);
    if (acknowledged > out.last)
    {
        out.lost = {out.last + 1, acknowledged};
        auto noted = db.execute("INSERT OR REPLACE INTO gaps VALUES(?, ?, 'the end of the journal was lost')", {out.lost.from, out.lost.to});
        if (!noted) { return std::move(noted).error(); }
        out.last = acknowledged;
    }
    return out;
}

} // namespace dstack::bus
