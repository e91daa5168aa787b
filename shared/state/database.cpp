#include "shared/state/database.hpp"
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <fcntl.h>
#include <map>
#include <mutex>
#include <sqlite3.h>
#include <sys/resource.h>
#include <thread>
#include <unistd.h>

namespace dstack::state
{

namespace
{
constexpr std::size_t statement_cache_limit = 64;

Errc classify(int code, int system_errno)
{
    const bool no_space = system_errno == ENOSPC || system_errno == EDQUOT || system_errno == EFBIG;
    switch (code & 0xff)
    {
    case SQLITE_FULL:
    case SQLITE_NOMEM:
    case SQLITE_TOOBIG: return Errc::resource_exhausted;
    // The shared memory file of the WAL cannot grow either when the disk is full.
    case SQLITE_IOERR: return no_space ? Errc::resource_exhausted : Errc::data_loss;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB: return Errc::data_loss;
    case SQLITE_BUSY:
    case SQLITE_LOCKED: return Errc::unavailable;
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_AUTH: return Errc::permission_denied;
    case SQLITE_CANTOPEN: return system_errno != 0 ? errc_from_errno(system_errno) : Errc::permission_denied;
    case SQLITE_CONSTRAINT:
        return code == SQLITE_CONSTRAINT_UNIQUE || code == SQLITE_CONSTRAINT_PRIMARYKEY ? Errc::already_exists
                                                                                       : Errc::failed_precondition;
    default: return Errc::internal;
    }
}

/// sqlite3_system_errno knows nothing of a write that failed inside COMMIT; the files do.
int system_errno_of(sqlite3* db)
{
    if (const int known = sqlite3_system_errno(db); known != 0) { return known; }
    sqlite3_file* wal = nullptr;
    int error = 0;
    if (sqlite3_file_control(db, nullptr, SQLITE_FCNTL_JOURNAL_POINTER, static_cast<void*>(&wal)) == SQLITE_OK && wal != nullptr &&
        wal->pMethods != nullptr)
    {
        wal->pMethods->xFileControl(wal, SQLITE_FCNTL_LAST_ERRNO, &error);
    }
    if (error == 0) { sqlite3_file_control(db, nullptr, SQLITE_FCNTL_LAST_ERRNO, &error); }
    return error;
}

Error sqlite_error(sqlite3* db, std::string_view what, const std::string& path)
{
    const int code = db != nullptr ? sqlite3_extended_errcode(db) : SQLITE_NOMEM;
    const int system_errno = db != nullptr ? system_errno_of(db) : 0;
    std::string message{what};
    message += " " + path + ": ";
    message += db != nullptr ? sqlite3_errmsg(db) : "out of memory";
    Error error{classify(code, system_errno), std::move(message), {}, {}};
    if (error.code == Errc::resource_exhausted) { error.hint = "free space on the file system of " + path; }
    return error;
}
} // namespace

struct Statement::Prepared
{
    std::string sql;
    sqlite3_stmt* raw = nullptr;
    Prepared(std::string text, sqlite3_stmt* stmt) : sql(std::move(text)), raw(stmt) {}
    Prepared(const Prepared&) = delete;
    Prepared& operator=(const Prepared&) = delete;
    ~Prepared() { sqlite3_finalize(raw); }
};

struct Connection::State
{
    std::string path;
    sqlite3* db = nullptr;
    std::map<std::string, std::unique_ptr<Statement::Prepared>, std::less<>> cache;
    State() = default;
    State(const State&) = delete;
    State& operator=(const State&) = delete;
    ~State()
    {
        cache.clear();
        sqlite3_close_v2(db);
    }
};

Statement::Statement(Connection* owner, std::unique_ptr<Prepared> prepared) : owner_(owner), prepared_(std::move(prepared)) {}
Statement::Statement(Statement&& other) noexcept = default;

Statement::~Statement()
{
    if (!prepared_) { return; }
    sqlite3_reset(prepared_->raw);
    sqlite3_clear_bindings(prepared_->raw);
    auto& cache = owner_->state_->cache;
    if (cache.size() < statement_cache_limit) { cache.emplace(prepared_->sql, std::move(prepared_)); }
}

Result<Done> Statement::bind(int index, Value value) { return bind_value(index, value, true); }
Result<Done> Statement::bind_borrowed(int index, Value value) { return bind_value(index, value, false); }

Result<Done> Statement::bind_value(int index, const Value& value, bool copy)
{
    sqlite3_stmt* raw = prepared_->raw;
    const sqlite3_destructor_type lifetime = copy ? SQLITE_TRANSIENT : SQLITE_STATIC;
    const auto bind_one = [&](const auto& v) -> int
    {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, std::nullptr_t>) { return sqlite3_bind_null(raw, index); }
        else if constexpr (std::is_same_v<T, std::int64_t>) { return sqlite3_bind_int64(raw, index, v); }
        else if constexpr (std::is_same_v<T, double>) { return sqlite3_bind_double(raw, index, v); }
        else if constexpr (std::is_same_v<T, std::string_view>)
        {
            const char* data = v.data() != nullptr ? v.data() : ""; // a null pointer would bind NULL
            return sqlite3_bind_text64(raw, index, data, v.size(), lifetime, SQLITE_UTF8);
        }
        else
        {
            const char* data = v.bytes.data() != nullptr ? v.bytes.data() : "";
            return sqlite3_bind_blob64(raw, index, data, v.bytes.size(), lifetime);
        }
    };
    if (std::visit(bind_one, value.get()) != SQLITE_OK) { return sqlite_error(owner_->state_->db, "bind in", owner_->state_->path); }
    return Done{};
}

Result<bool> Statement::step()
{
    const int rc = sqlite3_step(prepared_->raw);
    if (rc == SQLITE_ROW) { return true; }
    if (rc == SQLITE_DONE) { return false; }
    return sqlite_error(owner_->state_->db, "query", owner_->state_->path);
}

void Statement::reset() { sqlite3_reset(prepared_->raw); }

bool Statement::is_null(int column) const { return sqlite3_column_type(prepared_->raw, column) == SQLITE_NULL; }
std::int64_t Statement::column_int(int column) const { return sqlite3_column_int64(prepared_->raw, column); }
double Statement::column_double(int column) const { return sqlite3_column_double(prepared_->raw, column); }
std::string Statement::column_text(int column) const { return std::string{column_view(column)}; }

std::string_view Statement::column_view(int column) const
{
    const auto* data = static_cast<const char*>(sqlite3_column_blob(prepared_->raw, column));
    const int size = sqlite3_column_bytes(prepared_->raw, column);
    return data == nullptr ? std::string_view{} : std::string_view{data, static_cast<std::size_t>(size)};
}

Connection::Connection(std::unique_ptr<State> state) : state_(std::move(state)) {}
Connection::~Connection() = default;

Result<std::unique_ptr<Connection>> Connection::open(const std::string& path)
{
    auto state = std::make_unique<State>();
    state->path = path;
    // Created here, so that the file and the -wal and -shm files, which take over its mode, are private.
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) { return errno_error("open " + path, errno); }
    ::close(fd);
    const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
    if (sqlite3_open_v2(path.c_str(), &state->db, flags, nullptr) != SQLITE_OK)
    {
        return sqlite_error(state->db, "open", path);
    }
    return std::unique_ptr<Connection>{new Connection{std::move(state)}};
}

Result<Done> Connection::exec(const std::string& sql)
{
    if (sqlite3_exec(state_->db, sql.c_str(), nullptr, nullptr, nullptr) != SQLITE_OK)
    {
        return sqlite_error(state_->db, "query", state_->path);
    }
    return Done{};
}

Result<Statement> Connection::prepare(std::string_view sql)
{
    const auto known = state_->cache.find(sql);
    if (known != state_->cache.end())
    {
        auto node = state_->cache.extract(known);
        return Statement{this, std::move(node.mapped())};
    }
    sqlite3_stmt* raw = nullptr;
    if (sqlite3_prepare_v3(state_->db, sql.data(), static_cast<int>(sql.size()), SQLITE_PREPARE_PERSISTENT, &raw, nullptr) !=
        SQLITE_OK)
    {
        return sqlite_error(state_->db, "prepare for", state_->path);
    }
    return Statement{this, std::make_unique<Statement::Prepared>(std::string{sql}, raw)};
}

Result<Statement> Connection::query(std::string_view sql, std::initializer_list<Value> values)
{
    auto statement = prepare(sql);
    if (!statement) { return statement; }
    int index = 1;
    for (const Value& value : values)
    {
        auto bound = statement->bind(index++, value);
        if (!bound) { return std::move(bound).error(); }
    }
    return statement;
}

Result<Done> Connection::execute(std::string_view sql, std::initializer_list<Value> values)
{
    auto statement = query(sql, values);
    if (!statement) { return std::move(statement).error(); }
    for (;;)
    {
        auto more = statement->step();
        if (!more) { return std::move(more).error(); }
        if (!*more) { return Done{}; }
    }
}

std::int64_t Connection::changes() const { return sqlite3_changes64(state_->db); }
std::int64_t Connection::last_insert_rowid() const { return sqlite3_last_insert_rowid(state_->db); }
bool Connection::in_transaction() const { return sqlite3_get_autocommit(state_->db) == 0; }

Result<Transaction> Transaction::begin(Connection& connection, bool read_only)
{
    auto begun = connection.execute(read_only ? "BEGIN" : "BEGIN IMMEDIATE");
    if (!begun) { return std::move(begun).error(); }
    return Transaction{&connection};
}

Transaction::~Transaction()
{
    // SQLite has already rolled back after some errors (disk full, I/O).
    if (connection_ != nullptr && connection_->in_transaction()) { (void)connection_->execute("ROLLBACK"); }
}

Result<Done> Transaction::commit()
{
    if (!connection_->in_transaction())
    {
        return Error{Errc::aborted, "commit: the transaction was rolled back by an earlier error", {}, {}};
    }
    return connection_->execute("COMMIT"); // on an error the destructor rolls back
}

namespace
{
Result<std::int64_t> pragma_int(Connection& connection, std::string_view sql)
{
    auto statement = connection.query(sql);
    if (!statement) { return std::move(statement).error(); }
    auto row = statement->step();
    if (!row) { return std::move(row).error(); }
    return *row ? statement->column_int(0) : 0;
}

Result<Done> check_integrity(Connection& connection, const std::string& path)
{
    auto statement = connection.query("PRAGMA quick_check(1)");
    if (!statement) { return std::move(statement).error(); }
    auto row = statement->step();
    if (!row) { return std::move(row).error(); }
    const std::string verdict = *row ? statement->column_text(0) : "no answer";
    if (verdict != "ok")
    {
        return Error{Errc::data_loss, "check " + path + ": the database is damaged: " + verdict,
                     "restore the file from a backup, or move it away to start empty", {}};
    }
    return Done{};
}

Result<Done> migrate(Connection& connection, const std::string& path, const std::vector<std::string>& migrations)
{
    auto version = pragma_int(connection, "PRAGMA user_version");
    if (!version) { return std::move(version).error(); }
    if (*version < 0 || static_cast<std::size_t>(*version) > migrations.size())
    {
        return Error{Errc::failed_precondition,
                     path + ": version " + std::to_string(*version) + " was written by a newer program; this one knows " +
                         std::to_string(migrations.size()),
                     "run the newer program again, or restore the backup made before the upgrade", {}};
    }
    for (auto i = static_cast<std::size_t>(*version); i < migrations.size(); ++i)
    {
        auto transaction = Transaction::begin(connection);
        if (!transaction) { return std::move(transaction).error(); }
        auto applied = connection.exec(migrations[i] + ";\nPRAGMA user_version = " + std::to_string(i + 1));
        if (!applied) { return std::move(applied).error().within("migration " + std::to_string(i + 1)); }
        auto committed = transaction->commit();
        if (!committed) { return std::move(committed).error().within("migration " + std::to_string(i + 1)); }
    }
    return Done{};
}

Result<Done> prepare_file(Connection& connection, const std::string& path, const std::vector<std::string>& migrations,
                          const DatabaseOptions& options)
{
    const std::string page_size = options.page_size > 0 ? "PRAGMA page_size = " + std::to_string(options.page_size) + "; " : "";
    auto set = connection.exec(page_size + "PRAGMA busy_timeout = " + std::to_string(options.busy_timeout.count()) +
                               "; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON");
    if (!set) { return set; }
    if (options.quick_check)
    {
        auto intact = check_integrity(connection, path);
        if (!intact) { return intact; }
    }
    if (options.read_only) { return connection.exec("PRAGMA query_only = ON"); }
    return migrate(connection, path, migrations);
}
} // namespace

namespace
{
/// For threads that have time: they get less of a busy processor than those that somebody waits for.
void lower_priority()
{
    constexpr int nice = 5;
    ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), nice); // of this thread only, on Linux
}
} // namespace

/// Copies the log into the database on a thread and a connection of its own, so that no commit waits for it.
class Connection::Checkpointer
{
  public:
    static Result<std::unique_ptr<Checkpointer>> start(Connection& writer)
    {
        auto own = Connection::open(writer.state_->path);
        if (!own) { return std::move(own).error(); }
        auto set = (*own)->exec("PRAGMA busy_timeout = 50; PRAGMA synchronous = FULL");
        if (!set) { return std::move(set).error(); }
        return std::unique_ptr<Checkpointer>{new Checkpointer{writer, std::move(*own)}};
    }
    Checkpointer(const Checkpointer&) = delete;
    Checkpointer& operator=(const Checkpointer&) = delete;
    ~Checkpointer()
    {
        sqlite3_wal_hook(writer_.state_->db, nullptr, nullptr);
        {
            const std::lock_guard lock{mutex_};
            stop_ = true;
        }
        changed_.notify_one();
        thread_.join();
    }

  private:
    static constexpr int step_pages = 250;       ///< of log that are new since the last checkpoint: small steps keep the disk free for commits
    static constexpr int too_many_pages = 4'000; ///< commits wait until the log can begin anew
    static constexpr int few_pages = 100;        ///< for which commits may wait
    static constexpr int max_passes = 8;

    Checkpointer(Connection& writer, std::unique_ptr<Connection> own) : writer_(writer), own_(std::move(own))
    {
        sqlite3_wal_hook(
            writer.state_->db,
            [](void* self, sqlite3*, const char*, int pages)
            {
                static_cast<Checkpointer*>(self)->committed(pages);
                return SQLITE_OK;
            },
            this);
        thread_ = std::thread{[this] { work(); }}; // no lower priority: it may hold the lock that a commit waits for
    }

    void committed(int pages)
    {
        if (pages < copied_pages_) { copied_pages_ = 0; } // the log began anew
        if (pages < copied_pages_ + step_pages) { return; }
        copied_pages_ = pages;
        const std::lock_guard lock{mutex_};
        pages_ = pages;
        changed_.notify_one();
    }

    void work()
    {
        sqlite3* db = own_->state_->db;
        std::unique_lock lock{mutex_};
        for (;;)
        {
            changed_.wait(lock, [this] { return stop_ || pages_ > 0; });
            if (stop_) { return; }
            const bool much = std::exchange(pages_, 0) >= too_many_pages;
            lock.unlock();
            // An error (busy, disk full) leaves the log as it is: it is complete, and a later commit asks again.
            int logged = 0;
            int copied = 0;
            for (int pass = 0; pass < (much ? max_passes : 1); ++pass)
            {
                sqlite3_wal_checkpoint_v2(db, nullptr, SQLITE_CHECKPOINT_PASSIVE, &logged, &copied);
                if (logged - copied < few_pages) { break; } // what came meanwhile gets less with each pass
            }
            if (much) { sqlite3_wal_checkpoint_v2(db, nullptr, SQLITE_CHECKPOINT_RESTART, nullptr, nullptr); }
            lock.lock();
        }
    }

    Connection& writer_;
    std::unique_ptr<Connection> own_;
    int copied_pages_ = 0; // of the writer's thread: of log when it asked last
    std::mutex mutex_;
    std::condition_variable changed_;
    int pages_ = 0;     // under mutex_: of log at the last commit that asked
    bool stop_ = false; // under mutex_
    std::thread thread_;
};

struct Database::State
{
    std::unique_ptr<Connection> connection;
    std::unique_ptr<Connection::Checkpointer> checkpointer; // before the connection in destruction
    DatabaseOptions options;
    UvHandle<uv_async_t> wake;
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::shared_ptr<detail::DatabaseJob>> waiting; // under mutex
    std::deque<std::shared_ptr<detail::DatabaseJob>> ended;   // under mutex
    bool stop = false;                                        // under mutex
    std::thread worker;

    void work();
    void run_one(detail::DatabaseJob& job) const;
    void deliver();
};

void Database::State::run_one(detail::DatabaseJob& job) const
{
    auto transaction = Transaction::begin(*connection, options.read_only);
    if (!transaction)
    {
        job.fail(std::move(transaction).error());
        return;
    }
    if (!job.execute(*connection)) { return; }
    auto committed = transaction->commit();
    if (committed) { return; }
    const bool full = committed.error().code == Errc::resource_exhausted;
    job.fail(std::move(committed).error());
    {
        const Transaction rolled_back = std::move(*transaction);
    }
    // The log may be what fills the disk: empty it into the database, so that the next job has a chance.
    if (full) { (void)connection->exec("PRAGMA wal_checkpoint(TRUNCATE)"); }
}

void Database::State::work()
{
    std::unique_lock lock{mutex};
    for (;;)
    {
        changed.wait(lock, [this] { return stop || !waiting.empty(); });
        if (waiting.empty()) { return; }
        auto job = std::move(waiting.front());
        waiting.pop_front();
        lock.unlock();
        run_one(*job);
        lock.lock();
        ended.push_back(std::move(job));
        uv_async_send(wake.get());
    }
}

/// On the loop's thread.
void Database::State::deliver()
{
    std::deque<std::shared_ptr<detail::DatabaseJob>> batch;
    {
        const std::lock_guard lock{mutex};
        batch.swap(ended);
    }
    for (const auto& job : batch)
    {
        if (job->done != nullptr) { job->done->set(); }
    }
}

Database::Database(Loop& loop, std::unique_ptr<State> state) : loop_(loop), state_(std::move(state))
{
    state_->wake = make_uv<uv_async_t>(
        [&](uv_async_t* h) { return uv_async_init(loop.raw(), h, [](uv_async_t* a) { static_cast<State*>(a->data)->deliver(); }); });
    state_->wake->data = state_.get();
    state_->worker = std::thread{[state = state_.get()]
                                 {
                                     if (state->options.read_only) { lower_priority(); }
                                     state->work();
                                 }};
}

Result<std::unique_ptr<Database>> Database::open(Loop& loop, const std::string& path, const std::vector<std::string>& migrations,
                                                 DatabaseOptions options)
{
    auto connection = Connection::open(path);
    if (!connection) { return std::move(connection).error(); }
    auto ready = prepare_file(**connection, path, migrations, options);
    if (!ready) { return std::move(ready).error(); }
    auto state = std::make_unique<State>();
    state->connection = std::move(*connection);
    state->options = options;
    if (options.background_checkpoint)
    {
        auto checkpointer = Connection::Checkpointer::start(*state->connection);
        if (!checkpointer) { return std::move(checkpointer).error(); }
        state->checkpointer = std::move(*checkpointer);
    }
    return std::unique_ptr<Database>{new Database{loop, std::move(state)}};
}

Database::~Database()
{
    {
        const std::lock_guard lock{state_->mutex};
        state_->stop = true;
    }
    state_->changed.notify_one();
    state_->worker.join();
    state_->deliver(); // those who still wait get their results
}

void Database::enqueue(std::shared_ptr<detail::DatabaseJob> job)
{
    const std::lock_guard lock{state_->mutex};
    if (state_->waiting.size() >= state_->options.queue)
    {
        job->fail(Error{Errc::resource_exhausted,
                        "database: " + std::to_string(state_->waiting.size()) + " jobs are waiting already", "try again", {}});
        job->done->set();
        return;
    }
    state_->waiting.push_back(std::move(job));
    state_->changed.notify_one();
}

std::size_t Database::queued() const
{
    const std::lock_guard lock{state_->mutex};
    return state_->waiting.size();
}

} // namespace dstack::state
