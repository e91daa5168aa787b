#include "shared/runtime/scope.hpp"
#include "shared/state/database.hpp"
#include "shared/state/files.hpp"
#include "tests/catch.hpp"
#include "tests/unit/state/scratch.hpp"
#include <csignal>
#include <fstream>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace dstack;
using namespace dstack::state;

namespace
{
const std::vector<std::string> schema{"CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT NOT NULL) STRICT"};

Task<Result<Done>> insert(Database& db, std::int64_t id, std::string v)
{
    const auto job = [id, v = std::move(v)](Connection& c) { return c.execute("INSERT INTO t VALUES(?, ?)", {id, v}); };
    co_return co_await db.run(job);
}

Task<Result<std::int64_t>> count(Database& db)
{
    const auto job = [](Connection& c) -> Result<std::int64_t>
    {
        auto rows = c.query("SELECT count(*) FROM t");
        if (!rows) { return std::move(rows).error(); }
        auto row = rows->step();
        if (!row) { return std::move(row).error(); }
        return rows->column_int(0);
    };
    co_return co_await db.run(job);
}

template <class T>
Task<> keep(Task<Result<T>> task, std::optional<Result<T>>& out)
{
    auto value = co_await task;
    out.emplace(std::move(value));
}

template <class T>
Result<T> run(Loop& loop, Task<Result<T>> task)
{
    std::optional<Result<T>> out;
    loop.run(keep(std::move(task), out));
    return std::move(*out);
}

int wait_for(pid_t child)
{
    int status = 0;
    ::waitpid(child, &status, 0);
    return status;
}
} // namespace

TEST_CASE("a committed job is there after reopening; a failed one leaves nothing")
{
    const Scratch dir;
    {
        Loop loop;
        auto db = Database::open(loop, dir / "db", schema);
        REQUIRE(db);
        REQUIRE(run(loop, insert(**db, 1, "one")));
        auto taken = run(loop, insert(**db, 1, "again"));
        REQUIRE(!taken);
        CHECK(taken.error().code == Errc::already_exists);
        const auto half = [](Connection& c) -> Result<Done>
        {
            auto first = c.execute("INSERT INTO t VALUES(2, 'two')");
            if (!first) { return first; }
            return Error{Errc::aborted, "changed my mind", {}, {}};
        };
        auto aborted = run(loop, (*db)->run(half));
        REQUIRE(!aborted);
        CHECK(aborted.error().code == Errc::aborted);
    }
    Loop loop;
    auto db = Database::open(loop, dir / "db", schema);
    REQUIRE(db);
    auto n = run(loop, count(**db));
    REQUIRE(n);
    CHECK(*n == 1);
    struct stat facts = {};
    REQUIRE(::stat((dir / "db").c_str(), &facts) == 0);
    CHECK((facts.st_mode & 077) == 0);
}

TEST_CASE("values come back as they were bound")
{
    const Scratch dir;
    auto c = Connection::open(dir / "db");
    REQUIRE(c);
    REQUIRE((*c)->exec("CREATE TABLE v(i, t, b, n, d)"));
    const std::string bytes{"a\0b\xff", 4};
    REQUIRE((*c)->execute("INSERT INTO v VALUES(?, ?, ?, ?, ?)",
                          {std::int64_t{-9'000'000'000'000'000'000}, std::string_view{}, Blob{bytes}, nullptr, 0.5}));
    auto rows = (*c)->query("SELECT i, t, b, n, d, typeof(t), typeof(b) FROM v");
    REQUIRE(rows);
    auto row = rows->step();
    REQUIRE(row);
    REQUIRE(*row);
    CHECK(rows->column_int(0) == -9'000'000'000'000'000'000);
    CHECK(rows->column_text(1).empty());
    CHECK(!rows->is_null(1));
    CHECK(rows->column_text(2) == bytes);
    CHECK(rows->is_null(3));
    CHECK(rows->column_double(4) == 0.5);
    CHECK(rows->column_text(5) == "text");
    CHECK(rows->column_text(6) == "blob");
    auto wrong = (*c)->prepare("SELEC");
    REQUIRE(!wrong);
    CHECK(wrong.error().message.find("syntax error") != std::string::npos);
}

TEST_CASE("migrations run once, in order; a newer file is refused")
{
    const Scratch dir;
    const std::vector<std::string> two{schema[0], "ALTER TABLE t ADD COLUMN w TEXT; INSERT INTO t VALUES(7, 'v', 'w')"};
    {
        Loop loop;
        REQUIRE(Database::open(loop, dir / "db", schema));
        REQUIRE(Database::open(loop, dir / "db", two));
        auto db = Database::open(loop, dir / "db", two);
        REQUIRE(db);
        auto n = run(loop, count(**db));
        REQUIRE(n);
        CHECK(*n == 1);
        auto old = Database::open(loop, dir / "db", schema);
        REQUIRE(!old);
        CHECK(old.error().code == Errc::failed_precondition);
    }
    Loop loop;
    const std::vector<std::string> broken{schema[0], two[1], "CREATE TABLE u(a); CREATE TABLE t(b)"};
    REQUIRE(!Database::open(loop, dir / "db", broken));
    auto c = Connection::open(dir / "db");
    REQUIRE(c);
    CHECK(!(*c)->prepare("SELECT * FROM u")); // nothing of the migration that failed
}

TEST_CASE("a damaged file is refused")
{
    const Scratch dir;
    {
        Loop loop;
        auto db = Database::open(loop, dir / "db", schema);
        REQUIRE(db);
        for (int i = 0; i < 200; ++i) { REQUIRE(run(loop, insert(**db, i, std::string(500, 'x')))); }
    }
    std::fstream file{dir / "db", std::ios::in | std::ios::out | std::ios::binary};
    file.seekp(4096 * 3);
    file << std::string(4096 * 4, '\x5a');
    file.close();
    Loop loop;
    auto db = Database::open(loop, dir / "db", schema);
    REQUIRE(!db);
    CHECK(db.error().code == Errc::data_loss);
    REQUIRE(write_file_atomic(dir / "text", std::string(5000, 'x'), 0600));
    auto text = Database::open(loop, dir / "text", schema);
    REQUIRE(!text);
    CHECK(text.error().code == Errc::data_loss);
    auto nowhere = Database::open(loop, dir / "none/db", schema);
    REQUIRE(!nowhere);
    CHECK(nowhere.error().code == Errc::not_found);
}

namespace
{
Task<> insert_many(Database& db, int from, int n, int& good)
{
    for (int i = from; i < from + n; ++i)
    {
        auto done = co_await insert(db, i, "x");
        good += done ? 1 : 0;
    }
}

Task<> hundred_at_once(Loop& loop, Database& db, int& good)
{
    Scope scope{loop};
    for (int i = 0; i < 100; ++i) { scope.spawn(insert_many(db, i * 10, 10, good)); }
    co_await scope.drain();
}

Task<> one_job(Task<Result<Done>> task, std::vector<Errc>& errors, int& good)
{
    auto done = co_await task;
    if (done) { ++good; }
    else { errors.push_back(done.error().code); }
}

Task<> flood(Loop& loop, Database& db, std::vector<Errc>& errors, int& good)
{
    Scope scope{loop};
    for (int i = 0; i < 50; ++i) { scope.spawn(one_job(insert(db, i, "x"), errors, good)); }
    co_await scope.drain();
}

Task<> cancel_all(Loop& loop, Database& db)
{
    {
        Scope scope{loop};
        int ignored = 0;
        for (int i = 0; i < 20; ++i) { scope.spawn(insert_many(db, i, 1, ignored)); }
    }
    co_await next_turn(loop);
}
} // namespace

TEST_CASE("many coroutines at once")
{
    const Scratch dir;
    Loop loop;
    auto db = Database::open(loop, dir / "db", schema);
    REQUIRE(db);
    int good = 0;
    loop.run(hundred_at_once(loop, **db, good));
    CHECK(good == 1000);
    auto n = run(loop, count(**db));
    REQUIRE(n);
    CHECK(*n == 1000);
}

TEST_CASE("the queue is bounded and says so")
{
    const Scratch dir;
    Loop loop;
    auto db = Database::open(loop, dir / "db", schema, {.queue = 4, .busy_timeout = milliseconds{100}});
    REQUIRE(db);
    auto blocker = Connection::open(dir / "db"); // holds the write lock: the worker cannot begin
    REQUIRE(blocker);
    std::vector<Errc> errors;
    int good = 0;
    {
        auto held = Transaction::begin(**blocker);
        REQUIRE(held);
        loop.run(flood(loop, **db, errors, good));
    }
    CHECK(good == 0);
    REQUIRE(errors.size() == 50);
    CHECK(std::count(errors.begin(), errors.end(), Errc::resource_exhausted) >= 45);
    CHECK(std::count(errors.begin(), errors.end(), Errc::unavailable) >= 4); // busy beyond the timeout
    REQUIRE(run(loop, insert(**db, 1, "x")));
}

TEST_CASE("the jobs of cancelled callers still end")
{
    const Scratch dir;
    Loop loop;
    {
        auto db = Database::open(loop, dir / "db", schema);
        REQUIRE(db);
        loop.run(cancel_all(loop, **db));
    }
    auto db = Database::open(loop, dir / "db", schema);
    REQUIRE(db);
    auto n = run(loop, count(**db));
    REQUIRE(n);
    CHECK(*n == 20);
}

TEST_CASE("a full disk is resource_exhausted, and what was committed stays")
{
    const Scratch dir;
    const pid_t child = ::fork();
    if (child == 0)
    {
        ::signal(SIGXFSZ, SIG_IGN);
        Loop loop;
        auto db = Database::open(loop, dir / "db", schema);
        if (!db || !run(loop, insert(**db, 1, "kept"))) { ::_exit(2); }
        const rlimit limit{200'000, RLIM_INFINITY};
        ::setrlimit(RLIMIT_FSIZE, &limit);
        auto big = run(loop, insert(**db, 2, std::string(1'000'000, 'x')));
        if (big) { ::_exit(3); }
        if (big.error().code != Errc::resource_exhausted) { ::_exit(4); }
        const rlimit none{RLIM_INFINITY, RLIM_INFINITY};
        ::setrlimit(RLIMIT_FSIZE, &none);
        ::_exit(run(loop, insert(**db, 3, "after")) ? 0 : 5); // it works again when there is space
    }
    const int status = wait_for(child);
    REQUIRE(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
    Loop loop;
    auto db = Database::open(loop, dir / "db", schema);
    REQUIRE(db);
    auto n = run(loop, count(**db));
    REQUIRE(n);
    CHECK(*n == 2);
}

TEST_CASE("kill -9 at any moment loses nothing that was acknowledged")
{
    const Scratch dir;
    for (int round = 0; round < 5; ++round)
    {
        int acked[2] = {-1, -1};
        REQUIRE(::pipe(acked) == 0);
        const pid_t child = ::fork();
        if (child == 0)
        {
            Loop loop;
            auto db = Database::open(loop, dir / "db", schema);
            if (!db) { ::_exit(2); }
            for (std::int64_t i = 0;; ++i)
            {
                const std::int64_t id = round * 1'000'000 + i;
                if (!run(loop, insert(**db, id, "x"))) { ::_exit(3); }
                (void)!::write(acked[1], &id, sizeof id);
            }
        }
        ::close(acked[1]);
        std::vector<std::int64_t> ids;
        std::int64_t id = 0;
        while (ids.size() < 20U * static_cast<unsigned>(round + 1) && ::read(acked[0], &id, sizeof id) == sizeof id) { ids.push_back(id); }
        ::kill(child, SIGKILL);
        CHECK(WIFSIGNALED(wait_for(child)));
        while (::read(acked[0], &id, sizeof id) == sizeof id) { ids.push_back(id); }
        ::close(acked[0]);
        Loop loop;
        auto db = Database::open(loop, dir / "db", schema);
        REQUIRE(db);
        auto c = Connection::open(dir / "db");
        REQUIRE(c);
        std::size_t missing = 0;
        for (const auto want : ids)
        {
            auto rows = (*c)->query("SELECT 1 FROM t WHERE id = ?", {want});
            REQUIRE(rows);
            auto row = rows->step();
            REQUIRE(row);
            missing += *row ? 0 : 1;
        }
        CHECK(missing == 0);
    }
}
