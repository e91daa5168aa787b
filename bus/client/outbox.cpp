#include "bus/client/outbox.hpp"
#include "shared/log/log.hpp"
#include "shared/state/database.hpp"

namespace dstack::bus
{

namespace
{
constexpr std::size_t batch = 64;
constexpr milliseconds retry_after{500};

struct Kept
{
    std::int64_t number = 0;
    Client::OutgoingEvent event;
};

Result<std::vector<Kept>> oldest(state::Connection& db)
{
    auto rows = db.query("SELECT number, id, type, subject, severity, time_ms, traceparent, data FROM outbox ORDER BY number LIMIT ?", {batch});
    if (!rows) { return std::move(rows).error(); }
    std::vector<Kept> out;
    for (;;)
    {
        auto row = rows->step();
        if (!row) { return std::move(row).error(); }
        if (!*row) { return out; }
        Kept kept;
        kept.number = rows->column_int(0);
        kept.event.id = rows->column_text(1);
        kept.event.type = rows->column_text(2);
        kept.event.subject = rows->column_text(3);
        kept.event.severity = rows->column_text(4);
        kept.event.time_ms = static_cast<std::uint64_t>(rows->column_int(5));
        kept.event.traceparent = rows->column_text(6);
        kept.event.data = rows->column_text(7);
        out.push_back(std::move(kept));
    }
}
} // namespace

struct Outbox::State
{
    State(Loop& l, state::Database& d, Client& c) : loop(l), database(d), client(c), more(l) {}
    Loop& loop;
    state::Database& database;
    Client& client;
    Event more;
};

std::string_view Outbox::migration()
{
    return "CREATE TABLE outbox(number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, type TEXT NOT NULL, subject TEXT NOT NULL,"
           " severity TEXT NOT NULL, time_ms INTEGER NOT NULL, traceparent TEXT NOT NULL, data TEXT NOT NULL);";
}

Outbox::Outbox(Loop& loop, state::Database& database, Client& client) : state_(std::make_unique<State>(loop, database, client)) {}
Outbox::~Outbox() = default;

Result<Done> Outbox::add(state::Connection& connection, const Client::OutgoingEvent& event)
{
    return connection.execute("INSERT INTO outbox(id, type, subject, severity, time_ms, traceparent, data) VALUES(?,?,?,?,?,?,?)",
                              {event.id, event.type, event.subject, event.severity, event.time_ms, event.traceparent, event.data});
}

void Outbox::wake() { state_->more.set(); }

Task<> Outbox::run()
{
    State& self = *state_;
    for (;;)
    {
        self.more.reset();
        auto read = [](state::Connection& db) { return oldest(db); };
        auto kept = co_await self.database.run(read);
        if (!kept)
        {
            log::error("outbox not readable", {{"error", kept.error().message}});
            co_await sleep_for(self.loop, retry_after);
            continue;
        }
        if (kept->empty())
        {
            co_await self.more.wait();
            continue;
        }
        for (Kept& one : *kept)
        {
            const std::int64_t number = one.number;
            const std::string type = one.event.type;
            for (;;)
            {
                Client::OutgoingEvent event = one.event;
                auto sent = co_await self.client.publish_raw(std::move(event), milliseconds{30'000});
                if (sent) { break; }
                const Errc code = sent.error().code;
                if (code == Errc::invalid_argument || code == Errc::permission_denied)
                {
                    log::error("event refused by the broker, dropped", {{"type", type}, {"error", sent.error().message}});
                    break;
                }
                co_await sleep_for(self.loop, retry_after);
            }
            auto remove = [number](state::Connection& db) { return db.execute("DELETE FROM outbox WHERE number = ?", {number}); };
            auto removed = co_await self.database.run(remove);
            if (!removed) { log::error("outbox entry not removed; it will be published again under the same id", {{"error", removed.error().message}}); }
        }
    }
}

} // namespace dstack::bus
