#include "services/deployer/journal.hpp"

namespace dstack::deployer
{

namespace
{
using state::Connection;

/// Ended operations that are kept for `deploy.status` and for idempotency keys.
constexpr int kept_operations = 2000;

const std::vector<std::string>& migrations()
{
    static const std::vector<std::string> list{
        "CREATE TABLE apps(name TEXT PRIMARY KEY, created_ms INTEGER NOT NULL, document TEXT NOT NULL, facts TEXT NOT NULL,"
        " sight TEXT NOT NULL DEFAULT '{\"state\":\"unknown\"}') STRICT;"
        "CREATE TABLE operations(number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, ended INTEGER NOT NULL,"
        " record TEXT NOT NULL, key TEXT UNIQUE, request TEXT NOT NULL, reply TEXT NOT NULL) STRICT;"
        "CREATE INDEX operations_ended ON operations(ended, number)",
        std::string{bus::Outbox::migration()},
    };
    return list;
}

Result<Done> add_fact(Connection& db, const Fact& fact, const std::string& traceparent)
{
    const auto* step = std::get_if<schema::DeployStep>(&fact);
    const bool done = step != nullptr && step->state != "resumed";
    const std::string name = done ? (step->state == "undone" ? "undo " : "") + step->step : std::string{};
    const std::string span = done ? step_traceparent(traceparent, name) : bus::child_traceparent(traceparent);
    const auto add = [&](const auto& event) { return bus::Outbox::add(db, bus::Client::make_event(event, bus::Trace{span})); };
    return std::visit(add, fact);
}

Result<Done> put_app(Connection& db, const Work& work)
{
    if (work.gone) { return db.execute("DELETE FROM apps WHERE name = ?", {work.app.name}); }
    return db.execute("UPDATE apps SET facts = ? WHERE name = ?", {schema::to_json(work.app), work.app.name});
}

Result<Done> put_work(Connection& db, const Work& work, const std::vector<Fact>& facts)
{
    auto operation = db.execute("UPDATE operations SET ended = ?, record = ? WHERE id = ?",
                                {work.operation.ended(), schema::to_json(work.operation), work.operation.id});
    if (!operation) { return operation; }
    auto app = put_app(db, work);
    if (!app) { return app; }
    for (const Fact& fact : facts)
    {
        auto added = add_fact(db, fact, work.operation.traceparent);
        if (!added) { return added; }
    }
    return Done{};
}

template <class T>
Result<std::vector<T>> read_all(Connection& db, std::string_view what, std::string_view sql)
{
    auto rows = db.query(sql);
    if (!rows) { return std::move(rows).error(); }
    std::vector<T> out;
    for (;;)
    {
        auto row = rows->step();
        if (!row) { return std::move(row).error(); }
        if (!*row) { return out; }
        auto one = schema::from_json<T>(what, rows->column_view(0));
        if (!one)
        {
            one.error().code = Errc::data_loss;
            return std::move(one).error().within("journal");
        }
        if constexpr (std::is_same_v<T, AppFacts>) { one->app_compose = rows->column_text(1); }
        out.push_back(std::move(*one));
    }
}

Result<Loaded> read_loaded(Connection& db)
{
    Loaded out;
    auto apps = read_all<AppFacts>(db, "app", "SELECT facts, document FROM apps ORDER BY created_ms, name");
    if (!apps) { return std::move(apps).error(); }
    out.apps = std::move(*apps);
    auto sights = read_all<AppSight>(db, "sight", "SELECT sight FROM apps ORDER BY created_ms, name");
    if (!sights) { return std::move(sights).error(); }
    for (std::size_t i = 0; i < out.apps.size(); ++i) { out.sights[out.apps[i].name] = (*sights)[i]; }
    auto operations = read_all<Operation>(db, "operation", "SELECT record FROM operations WHERE ended = 0 ORDER BY number");
    if (!operations) { return std::move(operations).error(); }
    out.unfinished = std::move(*operations);
    return out;
}
} // namespace

Result<std::unique_ptr<state::Database>> Journal::open(Loop& loop, const std::string& path)
{
    return state::Database::open(loop, path, migrations());
}

Task<Result<Loaded>> Journal::load()
{
    const auto job = [](Connection& db) { return read_loaded(db); };
    co_return co_await database_.run(job);
}

Task<Result<std::optional<Answered>>> Journal::answered(std::string key)
{
    const auto job = [key](Connection& db) -> Result<std::optional<Answered>>
    {
        auto rows = db.query("SELECT request, reply FROM operations WHERE key = ?", {key});
        if (!rows) { return std::move(rows).error(); }
        auto row = rows->step();
        if (!row) { return std::move(row).error(); }
        if (!*row) { return std::optional<Answered>{}; }
        return std::optional<Answered>{Answered{rows->column_text(0), rows->column_text(1)}};
    };
    co_return co_await database_.run(job);
}

Task<Result<std::optional<Operation>>> Journal::find(std::string operation)
{
    const auto job = [operation](Connection& db) -> Result<std::optional<Operation>>
    {
        auto rows = db.query("SELECT record FROM operations WHERE id = ?", {operation});
        if (!rows) { return std::move(rows).error(); }
        auto row = rows->step();
        if (!row) { return std::move(row).error(); }
        if (!*row) { return std::optional<Operation>{}; }
        auto record = schema::from_json<Operation>("operation", rows->column_view(0));
        if (!record) { return std::move(record).error(); }
        return std::optional<Operation>{std::move(*record)};
    };
    co_return co_await database_.run(job);
}

Task<Result<Done>> Journal::begin(Work work, schema::DeployStarted fact, std::string key, Answered answer)
{
    const auto job = [work, fact, key, answer](Connection& db) -> Result<Done>
    {
        auto kept = db.execute("DELETE FROM operations WHERE ended = 1 AND number <= (SELECT max(number) FROM operations) - ?",
                               {kept_operations});
        if (!kept) { return kept; }
        auto inserted = db.execute("INSERT INTO operations(id, ended, record, key, request, reply) VALUES(?, 0, ?, nullif(?, ''), ?, ?)",
                                   {work.operation.id, schema::to_json(work.operation), key, answer.request, answer.reply});
        if (!inserted) { return inserted; }
        // The facts of an app that exists belong to the operation that runs; this one gets them when it is its turn.
        if (work.operation.kind == "create")
        {
            auto put = db.execute("INSERT INTO apps(name, created_ms, document, facts) VALUES(?, ?, ?, ?)",
                                  {work.app.name, work.app.created_ms, work.app.app_compose, schema::to_json(work.app)});
            if (!put) { return put; }
        }
        return bus::Outbox::add(db, bus::Client::make_event(fact, bus::Trace{bus::child_traceparent(work.operation.traceparent)}));
    };
    auto done = co_await database_.run(job);
    if (done) { outbox_.wake(); }
    co_return done;
}

Task<Result<Done>> Journal::save(Work work, std::vector<Fact> facts)
{
    const bool speaks = !facts.empty();
    const auto job = [work, facts](Connection& db) { return put_work(db, work, facts); };
    auto done = co_await database_.run(job);
    if (done && speaks) { outbox_.wake(); }
    co_return done;
}

Task<Result<Done>> Journal::save_sight(std::string name, AppSight sight, std::optional<schema::AppStateChanged> fact)
{
    const bool speaks = fact.has_value();
    const auto job = [name, sight, fact](Connection& db) -> Result<Done>
    {
        auto put = db.execute("UPDATE apps SET sight = ? WHERE name = ?", {schema::to_json(sight), name});
        if (!put || !fact) { return put; }
        return bus::Outbox::add(db, bus::Client::make_event(*fact));
    };
    auto done = co_await database_.run(job);
    if (done && speaks) { outbox_.wake(); }
    co_return done;
}

Task<Result<Done>> Journal::say(schema::DeployFailed fact, std::string traceparent)
{
    const auto job = [fact, traceparent](Connection& db) { return add_fact(db, Fact{fact}, traceparent); };
    auto done = co_await database_.run(job);
    if (done) { outbox_.wake(); }
    co_return done;
}

} // namespace dstack::deployer
