#pragma once
#include "shared/base/result.hpp"
#include "shared/runtime/loop.hpp"
#include <concepts>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

namespace dstack::state
{

/// What SQLite can hold, borrowed for one call. `Blob` keeps bytes from being taken for text.
struct Blob
{
    std::string_view bytes;
};
class Value
{
  public:
    Value(std::nullptr_t) {}
    Value(bool v) : v_(std::int64_t{v ? 1 : 0}) {}
    template <std::integral T>
        requires(!std::same_as<T, bool>)
    Value(T v) : v_(static_cast<std::int64_t>(v))
    {
    }
    Value(double v) : v_(v) {}
    Value(std::string_view v) : v_(v) {}
    Value(const std::string& v) : v_(std::string_view{v}) {}
    Value(const char* v) : v_(std::string_view{v}) {}
    Value(Blob v) : v_(v) {}
    using Variant = std::variant<std::nullptr_t, std::int64_t, double, std::string_view, Blob>;
    const Variant& get() const { return v_; }

  private:
    Variant v_{nullptr};
};

class Connection;

/// A prepared statement, borrowed from the connection's cache and given back (reset) by the destructor.
/// Parameters count from 1, columns from 0. Use within one job; must not outlive its Connection.
class Statement
{
  public:
    Statement(Statement&& other) noexcept;
    Statement& operator=(Statement&&) = delete;
    ~Statement();

    /// Copies the value.
    Result<Done> bind(int index, Value value);
    /// Without a copy: the value must live until the statement is reset or bound again.
    Result<Done> bind_borrowed(int index, Value value);
    /// True: there is a row to read. False: the statement has ended.
    Result<bool> step();
    /// Ready to be bound and stepped again.
    void reset();

    // Valid after step() gave true. SQLite converts between types; NULL reads as 0 and "".
    bool is_null(int column) const;
    std::int64_t column_int(int column) const;
    double column_double(int column) const;
    /// Text or blob bytes, copied.
    std::string column_text(int column) const;
    /// Without a copy; valid until the next step, reset or other column call on this column.
    std::string_view column_view(int column) const;

  private:
    friend class Connection;
    struct Prepared;
    Result<Done> bind_value(int index, const Value& value, bool copy);
    Statement(Connection* owner, std::unique_ptr<Prepared> prepared);
    Connection* owner_;
    std::unique_ptr<Prepared> prepared_;
};

/// One SQLite connection, used from one thread at a time. SQLITE_FULL is resource_exhausted; I/O errors and damage are
/// data_loss; a unique or primary key that exists is already_exists, another broken constraint failed_precondition;
/// SQLITE_BUSY beyond the busy timeout is unavailable.
class Connection
{
  public:
    static Result<std::unique_ptr<Connection>> open(const std::string& path);
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;
    ~Connection();

    /// One or more statements without parameters or rows.
    Result<Done> exec(const std::string& sql);
    /// One statement; its text is the key of a cache of prepared statements.
    Result<Statement> prepare(std::string_view sql);
    /// prepare + bind + step to the end, rows ignored: `db.execute("DELETE FROM t WHERE id = ?", {id})`.
    Result<Done> execute(std::string_view sql, std::initializer_list<Value> values = {});
    /// prepare + bind; the caller steps.
    Result<Statement> query(std::string_view sql, std::initializer_list<Value> values = {});
    /// Rows that the last statement inserted, changed or deleted.
    std::int64_t changes() const;
    std::int64_t last_insert_rowid() const;
    bool in_transaction() const;

    struct State;
    class Checkpointer;

  private:
    friend class Statement;
    explicit Connection(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

/// BEGIN IMMEDIATE until commit(); the destructor rolls back what was not committed.
class Transaction
{
  public:
    static Result<Transaction> begin(Connection& connection, bool read_only = false);
    Transaction(Transaction&& other) noexcept : connection_(std::exchange(other.connection_, nullptr)) {}
    Transaction& operator=(Transaction&&) = delete;
    ~Transaction();
    /// Durable when it returns without error; rolled back otherwise.
    Result<Done> commit();

  private:
    explicit Transaction(Connection* connection) : connection_(connection) {}
    Connection* connection_;
};

namespace detail
{
/// A job in the queue: owned by the queue and by the one who waits, so that either may go first.
class DatabaseJob
{
  public:
    virtual ~DatabaseJob() = default;
    /// On the worker: runs the job, says whether to commit.
    virtual bool execute(Connection& connection) = 0;
    /// Replaces the result: the transaction could not begin or commit.
    virtual void fail(Error error) = 0;
    Event* done = nullptr; ///< touched on the loop's thread only; null when nobody waits any more
};

template <class R, class F>
class TypedDatabaseJob : public DatabaseJob
{
  public:
    explicit TypedDatabaseJob(F job) : job_(std::move(job)) {}
    bool execute(Connection& connection) override
    {
        value.emplace(job_(connection));
        return static_cast<bool>(*value);
    }
    void fail(Error error) override { value.emplace(std::move(error)); }
    std::optional<R> value;

  private:
    F job_;
};
} // namespace detail

struct DatabaseOptions
{
    std::size_t queue = 1024; ///< jobs waiting; one more is resource_exhausted
    milliseconds busy_timeout{5000};
    /// The whole file is checked at open(): time grows with the file. Without it the caller checks what it reads.
    bool quick_check = true;
    /// Jobs run in a read transaction, beside the one Database that writes.
    bool read_only = false;
    /// Of a database that is made now, in bytes; 0: SQLite's own choice (4096).
    int page_size = 0;
    /// Checkpoints on a thread of their own instead of inside the commit that fills the log.
    bool background_checkpoint = false;
};

/// One SQLite file (WAL, synchronous=FULL) with one worker thread. Jobs run one after the other in the order of run().
/// Must be destroyed before its Loop; the destructor waits for the jobs that are queued.
class Database
{
  public:
    /// Opens or creates (mode 0600), runs an integrity quick_check (data_loss when damaged; see options) and the migrations that the file
    /// has not seen: migration i brings it from version i to i+1, each in one transaction; never edit one that was released.
    /// Blocks: for start-up. The directory must exist.
    static Result<std::unique_ptr<Database>> open(Loop& loop, const std::string& path, const std::vector<std::string>& migrations,
                                                  DatabaseOptions options = {});
    Database(const Database&) = delete;
    Database& operator=(const Database&) = delete;
    ~Database();

    /// `job`: Result<T>(Connection&), run on the worker inside one IMMEDIATE (or read) transaction: committed (durable) when it gives a
    /// value, rolled back when it gives an error. `job` must own what it touches; when the caller is cancelled the job
    /// still ends. `auto rows = co_await database.run(job);` with a named job.
    template <class F>
    Task<std::invoke_result_t<F&, Connection&>> run(F job)
    {
        using R = std::invoke_result_t<F&, Connection&>;
        auto queued = std::make_shared<detail::TypedDatabaseJob<R, F>>(std::move(job));
        Event done{loop_};
        queued->done = &done;
        struct Forget // a cancelled caller takes its event away before the job ends
        {
            detail::DatabaseJob& job;
            ~Forget() { job.done = nullptr; }
        } forget{*queued};
        enqueue(queued);
        co_await done.wait();
        co_return std::move(*queued->value);
    }

    /// Jobs that have not begun.
    std::size_t queued() const;

    struct State;

  private:
    Database(Loop& loop, std::unique_ptr<State> state);
    /// Never blocks; a full queue fails the job.
    void enqueue(std::shared_ptr<detail::DatabaseJob> job);
    Loop& loop_;
    std::unique_ptr<State> state_;
};

} // namespace dstack::state
