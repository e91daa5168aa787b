#include "services/allocator/lease_book.hpp"
#include "shared/base/time.hpp"
#include "shared/base/uuid.hpp"
#include "shared/log/log.hpp"
#include "shared/state/files.hpp"
#include <algorithm>
#include <filesystem>
#include <sys/stat.h>

namespace dstack::allocator
{

namespace
{

using bus::Client;
using state::Connection;

constexpr std::size_t max_waiting = 4096;
constexpr std::size_t max_group = 256; ///< reservations in one transaction: some milliseconds
constexpr std::size_t event_batch = 256;
constexpr milliseconds retry_after{500};
constexpr milliseconds publish_limit{30'000};
constexpr milliseconds open_limit{10'000};
constexpr std::uint64_t prune_every_ms = 3'600'000;
constexpr std::size_t max_id = 100;
constexpr std::uint32_t max_watched = 100'000;

Result<Done> add_event(Connection& db, Install install, const Client::OutgoingEvent& event)
{
    return db.execute("INSERT INTO outbox(install, id, type, subject, severity, time_ms, traceparent, data) VALUES(?,?,?,?,?,?,?,?)",
                      {install, event.id, event.type, event.subject, event.severity, event.time_ms, event.traceparent, event.data});
}

Result<Done> add_released(Connection& db, Install install, const schema::Lease& lease, const std::string& reason, const std::string& traceparent)
{
    return add_event(db, install, Client::make_event(schema::LeaseReleased{lease, reason}, bus::Trace{traceparent}));
}

/// Each install learns of its own.
Result<Done> expire_now(Connection& db, std::uint64_t now_ms)
{
    auto expired = expire(db, now_ms);
    if (!expired) { return std::move(expired).error(); }
    for (const Released& one : *expired)
    {
        auto added = add_released(db, one.install, one.lease, "expired", "");
        if (!added) { return added; }
    }
    return Done{};
}

Result<Reserved> reserve_one(Connection& db, const Batch& batch, Kernel& kernel, const Ranges& ranges, const Quotas& quotas,
                             const std::string& traceparent)
{
    auto reserved = reserve(db, batch, kernel, ranges, quotas);
    if (!reserved || reserved->again) { return reserved; }
    if (reserved->refusal)
    {
        schema::LeaseRefused event;
        event.owner = batch.owner;
        event.wanted = reserved->refusal->wanted;
        event.reason = reserved->refusal->error.message;
        auto told = add_event(db, batch.install, Client::make_event(std::move(event), bus::Trace{traceparent}));
        if (!told) { return std::move(told).error(); }
        return reserved;
    }
    for (const schema::Lease& lease : reserved->leases)
    {
        auto told = add_event(db, batch.install, Client::make_event(schema::LeaseGranted{lease}, bus::Trace{traceparent}));
        if (!told) { return std::move(told).error(); }
    }
    return reserved;
}

std::string id_in(const std::string& state_dir)
{
    auto text = state::read_file(state_dir + "/install-id", max_id);
    if (!text) { return {}; }
    while (!text->empty() && text->back() == '\n') { text->pop_back(); }
    return *text;
}

/// An install whose directory is gone, or is another install's now, will never give its leases back.
bool is_gone(const InstallRow& install)
{
    auto text = state::read_file(install.state_dir + "/install-id", max_id);
    if (!text) { return text.error().code == Errc::not_found; } // one that we may not see is not gone
    return id_in(install.state_dir) != install.id;
}

Result<Done> release_gone(Connection& db, Install here)
{
    auto known = installs(db);
    if (!known) { return std::move(known).error(); }
    for (const InstallRow& one : *known)
    {
        if (one.number == here || !is_gone(one)) { continue; }
        auto released = release_install(db, one.number, unix_ms());
        if (!released) { return std::move(released).error(); }
        for (const Released& lost : *released)
        {
            auto added = add_released(db, here, lost.lease, "the install in " + one.state_dir + " is gone", "");
            if (!added) { return added; }
        }
    }
    return Done{};
}

struct Kept
{
    std::int64_t last = 0;
    std::vector<Client::OutgoingEvent> events;
};

Result<Kept> oldest_events(Connection& db, Install install, std::int64_t after)
{
    auto rows = db.query("SELECT number, id, type, subject, severity, time_ms, traceparent, data FROM outbox"
                         " WHERE install = ? AND number > ? ORDER BY number LIMIT ?",
                         {install, after, event_batch});
    if (!rows) { return std::move(rows).error(); }
    Kept out{after, {}};
    for (;;)
    {
        auto row = rows->step();
        if (!row) { return std::move(row).error(); }
        if (!*row) { return out; }
        Client::OutgoingEvent event;
        out.last = rows->column_int(0);
        event.id = rows->column_text(1);
        event.type = rows->column_text(2);
        event.subject = rows->column_text(3);
        event.severity = rows->column_text(4);
        event.time_ms = static_cast<std::uint64_t>(rows->column_int(5));
        event.traceparent = rows->column_text(6);
        event.data = rows->column_text(7);
        out.events.push_back(std::move(event));
    }
}

std::string folder_of(const std::string& path) { return std::filesystem::path{path}.parent_path().string(); }

/// Whoever may write in the directory may use the database: installs that run as other users of its group.
void share_with_group(const std::string& path)
{
    struct stat folder{};
    const bool shared = ::stat(folder_of(path).c_str(), &folder) == 0 && (folder.st_mode & S_IWGRP) != 0;
    if (!shared) { return; }
    for (const char* suffix : {"", "-wal", "-shm", ".lock"})
    {
        // Best effort: of files that another user made, that user has done it.
        const std::string file = path + suffix;
        const bool ours = ::chown(file.c_str(), static_cast<uid_t>(-1), folder.st_gid) == 0;
        if (ours) { ::chmod(file.c_str(), 0660); }
    }
}

} // namespace

struct LeaseBook::Pending
{
    Pending(Loop& loop, Batch wanted, std::string trace) : batch(std::move(wanted)), traceparent(std::move(trace)), done(loop) {}
    Batch batch;
    std::string traceparent;
    std::optional<Result<Reserved>> result;
    Event done;
};

LeaseBook::LeaseBook(Loop& loop, const Config& config, bus::Client& bus)
    : loop_(loop), bus_(bus), ranges_{config.cid_first, config.cid_last, config.port_first, config.port_last, config.vsock_first, config.vsock_last},
      quotas_{config.ports_per_app, config.cids_per_app, config.leases_per_host}, kernel_(std::make_shared<Kernel>(config.privileged_ports)),
      asked_(loop), more_events_(loop)
{
}
LeaseBook::~LeaseBook() = default;

Result<std::unique_ptr<LeaseBook>> LeaseBook::open(Loop& loop, const Config& config, bus::Client& bus)
{
    std::unique_ptr<LeaseBook> book{new LeaseBook{loop, config, bus}};
    auto opened = book->open_database(config);
    if (!opened) { return std::move(opened).error(); }
    auto registered = book->register_here(config);
    if (!registered) { return std::move(registered).error().within("register the install in " + book->path_); }
    return book;
}

Result<Done> LeaseBook::open_at(const std::string& path)
{
    auto made = state::make_dirs(folder_of(path), 0750);
    if (!made) { return made; }
    // Two installs that start at once must not both make the tables.
    auto lock = state::FileLock::acquire(path + ".lock", open_limit);
    if (!lock) { return std::move(lock).error(); }
    const std::vector<std::string> migrations = lease_migrations();
    auto database = state::Database::open(loop_, path, migrations);
    if (!database) { return std::move(database).error(); }
    state::DatabaseOptions beside;
    beside.quick_check = false;
    beside.read_only = true;
    auto reader = state::Database::open(loop_, path, migrations, beside);
    if (!reader) { return std::move(reader).error(); }
    share_with_group(path);
    database_ = std::move(*database);
    reader_ = std::move(*reader);
    path_ = path;
    return Done{};
}

Result<Done> LeaseBook::open_database(const Config& config)
{
    const std::string wide = config.leases.empty() ? std::string{host_wide_leases} : config.leases;
    auto opened = open_at(wide);
    if (opened || !config.leases.empty() || opened.error().code != Errc::permission_denied) { return opened; }
    host_wide_ = false;
    warning_ = "leases are not host-wide: " + opened.error().message + "; other installs on this host are seen only by what they have bound";
    return open_at(config.state_dir + "/leases.db");
}

Result<Done> LeaseBook::register_here(const Config& config)
{
    std::string id = id_in(config.state_dir);
    if (id.empty())
    {
        id = uuid_v7();
        auto kept = state::write_file_atomic(config.state_dir + "/install-id", id + "\n", 0644);
        if (!kept) { return kept; }
    }
    std::error_code ignored;
    const std::string place = std::filesystem::weakly_canonical(config.state_dir, ignored).string();
    auto connection = Connection::open(path_);
    if (!connection) { return std::move(connection).error(); }
    auto patient = (*connection)->exec("PRAGMA busy_timeout = 5000; PRAGMA synchronous = FULL");
    if (!patient) { return patient; }
    auto transaction = state::Transaction::begin(**connection);
    if (!transaction) { return std::move(transaction).error(); }
    auto number = register_install(**connection, id, place.empty() ? config.state_dir : place, unix_ms());
    if (!number) { return std::move(number).error(); }
    install_ = *number;
    const std::string own = config.state_dir + "/leases.db";
    const bool moves = own != path_ && std::filesystem::exists(own, ignored);
    if (moves)
    {
        // Of an earlier version, or of a start that could not reach the host-wide database.
        auto old = Connection::open(own);
        if (!old) { return std::move(old).error(); }
        auto ready = (*old)->exec("PRAGMA busy_timeout = 5000");
        if (!ready) { return ready; }
        auto version = (*old)->query("PRAGMA user_version");
        if (!version) { return std::move(version).error(); }
        auto row = version->step();
        if (!row) { return std::move(row).error(); }
        const auto migrations = lease_migrations();
        for (auto i = static_cast<std::size_t>(std::max<std::int64_t>(version->column_int(0), 0)); i < migrations.size(); ++i)
        {
            version->reset();
            auto migrated = (*old)->exec("BEGIN IMMEDIATE;" + migrations[i] + "PRAGMA user_version = " + std::to_string(i + 1) + "; COMMIT");
            if (!migrated) { return std::move(migrated).error().within("bring " + own + " up to date"); }
        }
        auto adopted = adopt(**connection, install_, **old);
        if (!adopted) { return std::move(adopted).error(); }
        if (*adopted > 0) { log::info("leases moved to the host's database", {{"leases", *adopted}, {"from", own}, {"to", path_}}); }
    }
    auto committed = transaction->commit();
    if (!committed) { return committed; }
    if (moves)
    {
        std::filesystem::rename(own, own + ".moved", ignored);
        for (const char* suffix : {"-wal", "-shm"}) { std::filesystem::remove(own + suffix, ignored); }
    }
    return Done{};
}

void LeaseBook::start(Scope& scope)
{
    scope.spawn(commit_reservations());
    scope.spawn(publish_events());
}

Task<Result<Reserved>> LeaseBook::reserve(Batch batch, std::string traceparent)
{
    if (waiting_.size() >= max_waiting)
    {
        co_return Error{Errc::resource_exhausted, std::to_string(waiting_.size()) + " reservations are waiting already", "try again", {}};
    }
    batch.install = install_;
    auto pending = std::make_shared<Pending>(loop_, std::move(batch), std::move(traceparent));
    waiting_.push_back(pending);
    asked_.set();
    co_await pending->done.wait();
    co_return std::move(*pending->result);
}

/// Group commit: what comes while one transaction is written goes into the next.
Task<> LeaseBook::commit_reservations()
{
    for (;;)
    {
        co_await asked_.wait();
        std::vector<std::shared_ptr<Pending>> group;
        while (!waiting_.empty() && group.size() < max_group)
        {
            group.push_back(std::move(waiting_.front()));
            waiting_.pop_front();
        }
        if (waiting_.empty()) { asked_.reset(); }
        if (group.empty()) { continue; }
        const std::int64_t published = published_;
        const bool forget = published > forgotten_;
        auto job = [group, kernel = kernel_, ranges = ranges_, quotas = quotas_, install = install_, published,
                    forget](Connection& db) -> Result<std::vector<Result<Reserved>>>
        {
            auto expired = expire_now(db, unix_ms());
            if (!expired) { return std::move(expired).error(); }
            kernel->begin();
            std::vector<Result<Reserved>> out;
            for (const auto& one : group)
            {
                auto reserved = reserve_one(db, one->batch, *kernel, ranges, quotas, one->traceparent);
                // What a caller did wrong was found before anything was written; a database that fails takes all back.
                const bool fatal = !reserved && reserved.error().code != Errc::invalid_argument && reserved.error().code != Errc::failed_precondition;
                if (fatal) { return std::move(reserved).error(); }
                out.push_back(std::move(reserved));
            }
            if (forget)
            {
                auto forgotten = db.execute("DELETE FROM outbox WHERE install = ? AND number <= ?", {install, published});
                if (!forgotten) { return std::move(forgotten).error(); }
            }
            return out;
        };
        auto done = co_await database_->run(job);
        for (std::size_t i = 0; i < group.size(); ++i)
        {
            group[i]->result.emplace(done ? std::move((*done)[i]) : Result<Reserved>{done.error()});
            group[i]->done.set();
        }
        if (done)
        {
            forgotten_ = std::max(forgotten_, published);
            more_events_.set();
        }
    }
}

Task<> LeaseBook::publish_one(Client::OutgoingEvent event)
{
    for (;;)
    {
        Client::OutgoingEvent copy = event;
        auto sent = co_await bus_.publish_raw(std::move(copy), publish_limit);
        if (sent) { co_return; }
        const Errc code = sent.error().code;
        if (code == Errc::invalid_argument || code == Errc::permission_denied)
        {
            log::error("event refused by the broker, dropped", {{"type", event.type}, {"error", sent.error().message}});
            co_return;
        }
        co_await sleep_for(loop_, retry_after);
    }
}

Task<> LeaseBook::publish_events()
{
    auto modest = [](Connection& db) { return db.exec("PRAGMA cache_size = -256"); }; // it reads from end to end
    auto set = co_await reader_->run(modest);
    if (!set) { log::warn("cache of the lease reader not set", {{"error", set.error().message}}); }
    Scope sending{loop_};
    for (;;)
    {
        more_events_.reset();
        auto read = [install = install_, after = published_](Connection& db) { return oldest_events(db, install, after); };
        auto kept = co_await reader_->run(read);
        if (!kept)
        {
            log::error("events not readable", {{"error", kept.error().message}});
            co_await sleep_for(loop_, retry_after);
            continue;
        }
        if (kept->events.empty())
        {
            co_await more_events_.wait();
            continue;
        }
        for (auto& event : kept->events) { sending.spawn(publish_one(std::move(event))); } // sent in this order, on one connection
        co_await sending.drain();
        published_ = kept->last;
    }
}

Task<Result<Done>> LeaseBook::bind(std::string owner, std::string vm)
{
    auto job = [install = install_, owner = std::move(owner), vm = std::move(vm)](Connection& db) { return allocator::bind(db, install, owner, vm, unix_ms()); };
    co_return co_await database_->run(job);
}

Task<Result<std::vector<schema::Lease>>> LeaseBook::release(std::string owner, std::string id, std::string reason, std::string traceparent)
{
    auto job = [install = install_, owner = std::move(owner), id = std::move(id), reason = std::move(reason),
                traceparent = std::move(traceparent)](Connection& db) -> Result<std::vector<schema::Lease>>
    {
        auto released = allocator::release(db, install, owner, id, unix_ms());
        if (!released) { return released; }
        for (const schema::Lease& lease : *released)
        {
            auto told = add_released(db, install, lease, reason, traceparent);
            if (!told) { return std::move(told).error(); }
        }
        return released;
    };
    auto released = co_await database_->run(job);
    more_events_.set();
    co_return released;
}

Task<Result<Done>> LeaseBook::sweep()
{
    const std::uint64_t now_ms = unix_ms();
    const bool prunes = now_ms - pruned_ms_ >= prune_every_ms;
    const std::int64_t published = published_;
    // Most of the time there is nothing to do: that is found out without a transaction that writes.
    auto look = [now_ms, install = install_, published](Connection& db) -> Result<bool>
    {
        auto rows = db.query("SELECT EXISTS (SELECT 1 FROM leases WHERE state = 'reserved' AND expires_ms <= ?)"
                             " OR EXISTS (SELECT 1 FROM outbox WHERE install = ? AND number <= ?)",
                             {now_ms, install, published});
        if (!rows) { return std::move(rows).error(); }
        auto row = rows->step();
        if (!row) { return std::move(row).error(); }
        if (rows->column_int(0) != 0) { return true; }
        auto known = installs(db);
        if (!known) { return std::move(known).error(); }
        return std::any_of(known->begin(), known->end(), [&](const InstallRow& one) { return one.number != install && is_gone(one); });
    };
    auto needed = co_await reader_->run(look);
    if (!needed) { co_return std::move(needed).error(); }
    if (*needed || prunes)
    {
        auto job = [now_ms, prunes, install = install_, published](Connection& db) -> Result<Done>
        {
            auto expired = expire_now(db, now_ms);
            if (!expired) { return expired; }
            auto gone = release_gone(db, install);
            if (!gone) { return gone; }
            auto pruned = prunes ? prune(db, now_ms) : Result<Done>{Done{}};
            if (!pruned) { return pruned; }
            return db.execute("DELETE FROM outbox WHERE install = ? AND number <= ?", {install, published});
        };
        auto swept = co_await database_->run(job);
        if (!swept) { co_return std::move(swept).error(); }
        forgotten_ = std::max(forgotten_, published);
        if (prunes) { pruned_ms_ = now_ms; }
    }
    more_events_.set(); // others may have written some for us
    co_return Done{};
}

Task<Result<Listed>> LeaseBook::list(Page page)
{
    auto job = [install = install_, page = std::move(page)](Connection& db) { return allocator::list(db, install, page); };
    co_return co_await reader_->run(job);
}

Task<Result<Rows>> LeaseBook::list_rows(Page page)
{
    auto job = [install = install_, page = std::move(page)](Connection& db) { return allocator::list_rows(db, install, page); };
    co_return co_await reader_->run(job);
}

Task<Result<std::optional<schema::Lease>>> LeaseBook::find(std::string id)
{
    auto job = [install = install_, id = std::move(id)](Connection& db) { return allocator::find(db, install, id); };
    co_return co_await reader_->run(job);
}

Task<Result<std::vector<schema::Lease>>> LeaseBook::holders(Kind kind, std::uint32_t value)
{
    auto job = [install = install_, kind, value](Connection& db) { return allocator::holders(db, install, kind, value); };
    co_return co_await reader_->run(job);
}

Task<Result<std::vector<Watched>>> LeaseBook::watched(bool all)
{
    auto job = [install = all ? Install{0} : install_](Connection& db) { return allocator::watched(db, install, max_watched); };
    co_return co_await reader_->run(job);
}

Task<Result<Done>> LeaseBook::tell(Client::OutgoingEvent event)
{
    auto job = [install = install_, event = std::move(event)](Connection& db) { return add_event(db, install, event); };
    auto told = co_await database_->run(job);
    more_events_.set();
    co_return told;
}

} // namespace dstack::allocator
