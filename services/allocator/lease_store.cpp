#include "services/allocator/lease_store.hpp"
#include "shared/base/time.hpp"
#include <algorithm>
#include <charconv>
#include <map>

namespace dstack::allocator
{

namespace
{

using state::Connection;

constexpr std::size_t max_name = 128;
constexpr std::size_t max_wishes = 64;
constexpr std::uint64_t min_ttl_ms = 1000;
constexpr std::uint64_t max_ttl_ms = 24ull * 3600 * 1000;
constexpr std::uint64_t keep_ms = 7ull * 24 * 3600 * 1000;
constexpr std::uint32_t max_page = 2000;
constexpr std::uint32_t max_rows = 5000;
constexpr std::size_t max_rows_bytes = 256 * 1024; ///< small pages: each is copied some times on its way

constexpr std::string_view columns = "number, kind, protocol, address, value, owner, purpose, state, since_ms, expires_ms, vm, install,"
                                     " caller";

bool is_name(std::string_view text)
{
    return !text.empty() && text.size() <= max_name &&
           std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

/// The names that a VMM takes for a VM (dstack-protocol B.3) may have spaces inside.
bool is_owner(std::string_view text)
{
    std::string word{text};
    std::replace(word.begin(), word.end(), ' ', '_');
    return is_name(word) && text.front() != ' ' && text.back() != ' ';
}

std::int64_t number_of(std::string_view id)
{
    constexpr std::string_view prefix = "lease-";
    std::int64_t number = 0;
    if (!id.starts_with(prefix)) { return 0; }
    id.remove_prefix(prefix.size());
    const auto [end, failed] = std::from_chars(id.data(), id.data() + id.size(), number);
    return failed == std::errc{} && end == id.data() + id.size() ? number : 0;
}

schema::Lease lease_of(const state::Statement& row)
{
    schema::Lease out;
    out.id = "lease-" + std::to_string(row.column_int(0));
    out.kind = row.column_text(1);
    out.protocol = row.column_text(2);
    out.address = row.column_text(3);
    out.value = static_cast<std::uint32_t>(row.column_int(4));
    out.owner = row.column_text(5);
    out.purpose = row.column_text(6);
    out.state = row.column_text(7);
    out.since = rfc3339(static_cast<std::uint64_t>(row.column_int(8)));
    if (out.state == "reserved") { out.expires = rfc3339(static_cast<std::uint64_t>(row.column_int(9))); }
    out.vm = row.column_text(10);
    out.caller = row.column_text(12);
    return out;
}

constexpr int install_column = 11;

/// `visit` with each row; the tail of the statement is after the columns: " FROM leases WHERE ...".
template <class F>
Result<Done> each(Connection& db, std::string_view tail, std::initializer_list<state::Value> values, F visit)
{
    auto rows = db.query("SELECT " + std::string{columns} + " FROM leases WHERE " + std::string{tail}, values);
    if (!rows) { return std::move(rows).error(); }
    for (;;)
    {
        auto row = rows->step();
        if (!row) { return std::move(row).error(); }
        if (!*row) { return Done{}; }
        visit(*rows);
    }
}

Result<std::vector<schema::Lease>> select(Connection& db, std::string_view tail, std::initializer_list<state::Value> values)
{
    std::vector<schema::Lease> out;
    auto done = each(db, tail, values, [&](const state::Statement& row) { out.push_back(lease_of(row)); });
    if (!done) { return std::move(done).error(); }
    return out;
}

/// As `here` sees them: a lease of another install says whose it is.
Result<std::vector<schema::Lease>> select_for(Connection& db, Install here, std::string_view tail,
                                              std::initializer_list<state::Value> values)
{
    std::map<Install, std::string> names;
    auto known = installs(db);
    if (!known) { return std::move(known).error(); }
    for (InstallRow& one : *known)
    {
        if (one.number != here) { names.emplace(one.number, std::move(one.state_dir)); }
    }
    std::vector<schema::Lease> out;
    auto done = each(db, tail, values,
                     [&](const state::Statement& row)
                     {
                         out.push_back(lease_of(row));
                         const auto name = names.find(row.column_int(install_column));
                         if (name != names.end()) { out.back().install = name->second; }
                     });
    if (!done) { return std::move(done).error(); }
    return out;
}

/// The leases in force that `where` names become released; they are returned as they are now.
Result<std::vector<Released>> release_where(Connection& db, std::string_view where,
                                            std::initializer_list<state::Value> values, std::uint64_t now_ms)
{
    std::vector<Released> out;
    // The plus signs keep SQLite from walking through all leases in force, in their order, where `where` has an index.
    auto read = each(db, std::string{where} + " AND +state != 'released' ORDER BY +number", values,
                     [&](const state::Statement& row)
                     { out.push_back({row.column_int(install_column), lease_of(row)}); });
    if (!read) { return std::move(read).error(); }
    for (auto& [install, lease] : out)
    {
        lease.state = "released";
        lease.since = rfc3339(now_ms);
        lease.expires.clear();
        auto done = db.execute("UPDATE leases SET state = 'released', since_ms = ? WHERE number = ?",
                               {now_ms, number_of(lease.id)});
        if (!done) { return std::move(done).error(); }
    }
    return out;
}

std::vector<schema::Lease> without_installs(std::vector<Released> released)
{
    std::vector<schema::Lease> out;
    for (Released& one : released) { out.push_back(std::move(one.lease)); }
    return out;
}

Result<std::optional<std::string>> text_where(Connection& db, std::string_view sql,
                                              std::initializer_list<state::Value> values)
{
    auto rows = db.query(sql, values);
    if (!rows) { return std::move(rows).error(); }
    auto row = rows->step();
    if (!row) { return std::move(row).error(); }
    return *row ? std::optional{rows->column_text(0)} : std::optional<std::string>{};
}

Result<std::int64_t> number_where(Connection& db, std::string_view sql, std::initializer_list<state::Value> values)
{
    auto rows = db.query(sql, values);
    if (!rows) { return std::move(rows).error(); }
    auto row = rows->step();
    if (!row) { return std::move(row).error(); }
    return *row ? rows->column_int(0) : std::int64_t{0};
}

/// One batch asked for twice must ask for the same.
std::string wishes_text(const std::vector<Wish>& wishes)
{
    std::string out;
    for (const Wish& wish : wishes) { out += wish.resource.text() + " " + wish.purpose + "\n"; }
    return out;
}

Result<Reserved> repeat(Connection& db, const Batch& batch, const std::string& wishes)
{
    const std::string name = "reservation " + batch.key + " of " + batch.owner;
    if (wishes != wishes_text(batch.wishes))
    {
        return Error{Errc::invalid_argument, name + ": the key was used for other wishes", "use a new key", {}};
    }
    auto prolonged = db.execute(
        "UPDATE leases SET expires_ms = max(expires_ms, ?) WHERE install = ? AND owner = ? AND batch = ? AND state = 'reserved'",
        {batch.expires_ms, batch.install, batch.owner, batch.key});
    if (!prolonged) { return std::move(prolonged).error(); }
    auto leases = select(db, "install = ? AND owner = ? AND batch = ? ORDER BY number", {batch.install, batch.owner, batch.key});
    if (!leases) { return std::move(leases).error(); }
    const bool gone =
        std::any_of(leases->begin(), leases->end(), [](const schema::Lease& one) { return one.state == "released"; });
    if (gone || leases->size() != batch.wishes.size())
    {
        return Error{
            Errc::failed_precondition, name + ": it was given back or ran out", "reserve again with a new key", {}};
    }
    return Reserved{std::move(*leases), true};
}

/// The database as a decision sees it.
class Stored : public Leases
{
  public:
    Stored(Connection& db, Install here) : db_(db), here_(here) {}

    Result<std::optional<Held>> conflict(const Resource& resource) override
    {
        auto rows = db_.query("SELECT address, owner, purpose, install FROM leases"
                              " WHERE kind = ? AND protocol = ? AND value = ? AND state != 'released'",
                              {to_string(resource.kind), resource.protocol, resource.value});
        if (!rows) { return std::move(rows).error(); }
        for (;;)
        {
            auto row = rows->step();
            if (!row) { return std::move(row).error(); }
            if (!*row) { return std::optional<Held>{}; }
            Held held{{resource.kind, resource.protocol, Address::parse(rows->column_view(0)), resource.value},
                      rows->column_text(1), rows->column_text(2)};
            if (!held.resource.conflicts(resource)) { continue; }
            const Install install = rows->column_int(3);
            if (install != here_)
            {
                auto name = text_where(db_, "SELECT state_dir FROM installs WHERE number = ?", {install});
                if (!name) { return std::move(name).error(); }
                held.owner += " of the install in " + name->value_or("an unknown directory");
            }
            return std::optional{std::move(held)};
        }
    }

    /// One pass over the index, up to the first hole.
    Result<std::optional<std::uint32_t>> first_free(const Resource& resource, std::uint32_t first, std::uint32_t last) override
    {
        auto rows = db_.query("SELECT value, address FROM leases WHERE kind = ? AND protocol = ? AND value BETWEEN ? AND ?"
                              " AND state != 'released' ORDER BY value",
                              {to_string(resource.kind), resource.protocol, first, last});
        if (!rows) { return std::move(rows).error(); }
        std::uint64_t next = first;
        for (;;)
        {
            auto row = rows->step();
            if (!row) { return std::move(row).error(); }
            if (!*row) { break; }
            const auto value = static_cast<std::uint64_t>(rows->column_int(0));
            if (value > next) { break; }
            if (value < next) { continue; } // another address of a port that is taken already
            const Resource held{resource.kind, resource.protocol, Address::parse(rows->column_view(1)), static_cast<std::uint32_t>(value)};
            Resource wanted = resource;
            wanted.value = held.value;
            if (held.conflicts(wanted)) { ++next; }
        }
        if (next > last) { return std::optional<std::uint32_t>{}; }
        return std::optional{static_cast<std::uint32_t>(next)};
    }

  private:
    Connection& db_;
    Install here_;
};

/// After the newest grant of each kind.
Result<Start> start_of(Connection& db)
{
    Start out;
    auto rows = db.query("SELECT kind, next FROM cursors");
    if (!rows) { return std::move(rows).error(); }
    for (;;)
    {
        auto row = rows->step();
        if (!row) { return std::move(row).error(); }
        if (!*row) { return out; }
        const auto next = static_cast<std::uint32_t>(std::clamp<std::int64_t>(rows->column_int(1), 0, 0xffff'ffff));
        switch (kind_of(rows->column_view(0)).value_or(Kind::port))
        {
        case Kind::cid: out.cid = next; break;
        case Kind::port: out.port = next; break;
        case Kind::vsock_port: out.vsock = next; break;
        }
    }
}

Result<Done> insert(Connection& db, const Batch& batch, const std::vector<Resource>& granted, std::vector<schema::Lease>& out)
{
    auto kept = db.execute("INSERT INTO batches VALUES(?, ?, ?, ?)", {batch.install, batch.owner, batch.key, wishes_text(batch.wishes)});
    if (!kept) { return kept; }
    const std::string since = rfc3339(batch.now_ms);
    const std::string expires = rfc3339(batch.expires_ms);
    for (std::size_t i = 0; i < granted.size(); ++i)
    {
        const Resource& one = granted[i];
        const std::string address = one.address ? one.address->text() : "";
        auto added = db.execute(
            "INSERT INTO leases(install, owner, batch, kind, protocol, address, value, purpose, state, since_ms, expires_ms, caller)"
            " VALUES(?, ?, ?, ?, ?, ?, ?, ?, 'reserved', ?, ?, ?)",
            {batch.install, batch.owner, batch.key, to_string(one.kind), one.protocol, address, one.value, batch.wishes[i].purpose,
             batch.now_ms, batch.expires_ms, batch.caller});
        if (!added) { return added; }
        schema::Lease lease;
        lease.id = "lease-" + std::to_string(db.last_insert_rowid());
        lease.kind = to_string(one.kind);
        lease.protocol = one.protocol;
        lease.address = address;
        lease.value = one.value;
        lease.owner = batch.owner;
        lease.purpose = batch.wishes[i].purpose;
        lease.state = "reserved";
        lease.since = since;
        lease.expires = expires;
        lease.caller = batch.caller;
        out.push_back(std::move(lease));
        if (batch.wishes[i].resource.value != 0) { continue; }
        auto moved = db.execute("INSERT INTO cursors(kind, next) VALUES(?, ?) ON CONFLICT(kind) DO UPDATE SET next = excluded.next",
                                {to_string(one.kind), std::uint64_t{one.value} + 1});
        if (!moved) { return moved; }
    }
    return Done{};
}

std::string words_of(Kind kind, std::int64_t count)
{
    const std::string number = std::to_string(count) + " ";
    const bool one = count == 1;
    switch (kind)
    {
    case Kind::cid: return number + (one ? "cid" : "cids");
    case Kind::port: return number + (one ? "port" : "ports");
    case Kind::vsock_port: break;
    }
    return number + (one ? "vsock port" : "vsock ports");
}

/// "hello 40, other 12": who has the most.
Result<std::string> greatest_owners(Connection& db)
{
    auto rows = db.query("SELECT owner, count(*) AS held FROM leases WHERE state != 'released' GROUP BY install, owner"
                         " ORDER BY held DESC, owner LIMIT 3");
    if (!rows) { return std::move(rows).error(); }
    std::string out;
    for (;;)
    {
        auto row = rows->step();
        if (!row) { return std::move(row).error(); }
        if (!*row) { return out; }
        out += (out.empty() ? "" : ", ") + rows->column_text(0) + " " + std::to_string(rows->column_int(1));
    }
}

Result<std::optional<Refusal>> over_quota(Connection& db, const Batch& batch, const Quotas& quotas)
{
    for (const Kind kind : {Kind::port, Kind::cid})
    {
        const auto asked = std::count_if(batch.wishes.begin(), batch.wishes.end(), [&](const Wish& one) { return one.resource.kind == kind; });
        if (asked == 0) { continue; }
        const std::int64_t limit = kind == Kind::port ? quotas.ports_per_app : quotas.cids_per_app;
        auto held = number_where(db, "SELECT count(*) FROM leases WHERE install = ? AND owner = ? AND kind = ? AND state != 'released'",
                                 {batch.install, batch.owner, to_string(kind)});
        if (!held) { return std::move(held).error(); }
        if (*held + asked <= limit) { continue; }
        return std::optional{Refusal{words_of(kind, asked),
                                     Error{Errc::resource_exhausted,
                                           "the quota of " + batch.owner + " is " + words_of(kind, limit) + ": asked for " + std::to_string(asked) +
                                               ", free " + std::to_string(std::max<std::int64_t>(limit - *held, 0)) + ", " + batch.owner + " has " +
                                               std::to_string(*held),
                                           "release some (`dstack leases`), or raise quota." + std::string{kind == Kind::port ? "ports" : "cids"} +
                                               "_per_app in allocator.toml",
                                           {}}}};
    }
    auto active = number_where(db, "SELECT active FROM counts", {});
    if (!active) { return std::move(active).error(); }
    if (*active + std::ssize(batch.wishes) <= std::int64_t{quotas.leases_per_host}) { return std::optional<Refusal>{}; }
    auto owners = greatest_owners(db);
    if (!owners) { return std::move(owners).error(); }
    const std::string asked = std::to_string(batch.wishes.size());
    return std::optional{Refusal{asked + " leases",
                                 Error{Errc::resource_exhausted,
                                       "the quota of this host is " + std::to_string(quotas.leases_per_host) + " leases: asked for " + asked + ", free " +
                                           std::to_string(std::max<std::int64_t>(std::int64_t{quotas.leases_per_host} - *active, 0)) +
                                           ", most are held by " + *owners,
                                       "release some (`dstack leases --all`), or raise quota.leases_per_host in allocator.toml",
                                       {}}}};
}

} // namespace

std::vector<std::string> lease_migrations()
{
    const std::string leases =
        "CREATE TABLE leases(number INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL, batch TEXT NOT NULL, "
        "kind TEXT NOT NULL,"
        " protocol TEXT NOT NULL, address TEXT NOT NULL, value INTEGER NOT NULL, purpose TEXT NOT NULL, state TEXT "
        "NOT NULL,"
        " since_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL);"
        "CREATE INDEX leases_owner ON leases(owner, batch);"
        "CREATE INDEX leases_active ON leases(state) WHERE state != 'released';"
        "CREATE TABLE batches(owner TEXT NOT NULL, key TEXT NOT NULL, wishes TEXT NOT NULL, PRIMARY KEY(owner, "
        "key)) WITHOUT ROWID;";
    const std::string outbox =
        "CREATE TABLE outbox(number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, type TEXT NOT NULL, subject TEXT NOT NULL,"
        " severity TEXT NOT NULL, time_ms INTEGER NOT NULL, traceparent TEXT NOT NULL, data TEXT NOT NULL);";
    // Several installs in one database. What was there before belongs to the first one that comes.
    const std::string host_wide =
        "CREATE TABLE installs(number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, state_dir TEXT NOT NULL, since_ms"
        " INTEGER NOT NULL);"
        "ALTER TABLE leases ADD COLUMN install INTEGER NOT NULL DEFAULT 1;"
        "ALTER TABLE leases ADD COLUMN caller TEXT NOT NULL DEFAULT '';"
        "ALTER TABLE leases ADD COLUMN vm TEXT NOT NULL DEFAULT '';"
        "DROP INDEX leases_owner; DROP INDEX leases_active;"
        "CREATE INDEX leases_owner ON leases(install, owner, batch);"
        "CREATE INDEX leases_active ON leases(number) WHERE state != 'released';"
        "CREATE INDEX leases_value ON leases(kind, protocol, value) WHERE state != 'released';"
        "CREATE INDEX leases_expiry ON leases(expires_ms) WHERE state = 'reserved';"
        "CREATE INDEX leases_released ON leases(since_ms) WHERE state = 'released';"
        "ALTER TABLE batches RENAME TO old_batches;"
        "CREATE TABLE batches(install INTEGER NOT NULL, owner TEXT NOT NULL, key TEXT NOT NULL, wishes TEXT NOT NULL,"
        " PRIMARY KEY(install, owner, key)) WITHOUT ROWID;"
        "INSERT INTO batches SELECT 1, owner, key, wishes FROM old_batches; DROP TABLE old_batches;"
        "ALTER TABLE outbox ADD COLUMN install INTEGER NOT NULL DEFAULT 1;"
        "CREATE INDEX outbox_install ON outbox(install, number);"
        "CREATE TABLE cursors(kind TEXT PRIMARY KEY, next INTEGER NOT NULL) WITHOUT ROWID;"
        "CREATE TABLE counts(active INTEGER NOT NULL);"
        "INSERT INTO counts SELECT count(*) FROM leases WHERE state != 'released';"
        "CREATE TRIGGER leases_more AFTER INSERT ON leases WHEN new.state != 'released' BEGIN UPDATE counts SET active = active + 1; END;"
        "CREATE TRIGGER leases_less AFTER UPDATE OF state ON leases WHEN old.state != 'released' AND new.state = 'released'"
        " BEGIN UPDATE counts SET active = active - 1; END;";
    return {leases, outbox, host_wide};
}

Result<Install> register_install(Connection& db, const std::string& id, const std::string& state_dir, std::uint64_t now_ms)
{
    auto kept = db.execute("INSERT INTO installs(id, state_dir, since_ms) VALUES(?, ?, ?)"
                           " ON CONFLICT(id) DO UPDATE SET state_dir = excluded.state_dir",
                           {id, state_dir, now_ms});
    if (!kept) { return std::move(kept).error(); }
    return number_where(db, "SELECT number FROM installs WHERE id = ?", {id});
}

Result<std::vector<InstallRow>> installs(Connection& db)
{
    auto rows = db.query("SELECT number, id, state_dir FROM installs ORDER BY number");
    if (!rows) { return std::move(rows).error(); }
    std::vector<InstallRow> out;
    for (;;)
    {
        auto row = rows->step();
        if (!row) { return std::move(row).error(); }
        if (!*row) { return out; }
        out.push_back({rows->column_int(0), rows->column_text(1), rows->column_text(2)});
    }
}

Result<Batch> make_batch(const schema::LeaseReserve& request, std::uint64_t now_ms)
{
    constexpr const char* name_rule = ": must be 1 to 128 printable ASCII characters without spaces";
    if (!is_owner(request.owner))
    {
        return Error{Errc::invalid_argument, "owner: must be 1 to 128 printable ASCII characters, no space at an end", {}, {}};
    }
    if (!is_name(request.key)) { return Error{Errc::invalid_argument, std::string{"key"} + name_rule, {}, {}}; }
    if (request.wishes.empty() || request.wishes.size() > max_wishes)
    {
        return Error{Errc::invalid_argument, "wishes: must be 1 to 64", {}, {}};
    }
    Batch out{request.owner, request.key, {}, now_ms, now_ms + std::clamp(request.ttl_ms, min_ttl_ms, max_ttl_ms)};
    for (std::size_t i = 0; i < request.wishes.size(); ++i)
    {
        const schema::LeaseWish& one = request.wishes[i];
        auto wish = make_wish(i, one.kind, one.protocol, one.address, one.value, one.purpose, one.privileged);
        if (!wish) { return std::move(wish).error(); }
        out.wishes.push_back(std::move(*wish));
    }
    return out;
}

Result<Reserved> reserve(Connection& db, const Batch& batch, HostFacts& host, const Ranges& ranges, const Quotas& quotas)
{
    auto before = text_where(db, "SELECT wishes FROM batches WHERE install = ? AND owner = ? AND key = ?",
                             {batch.install, batch.owner, batch.key});
    if (!before) { return std::move(before).error(); }
    if (*before) { return repeat(db, batch, **before); }
    auto over = over_quota(db, batch, quotas);
    if (!over) { return std::move(over).error(); }
    if (*over) { return Reserved{{}, false, std::move(*over)}; }
    auto start = start_of(db);
    if (!start) { return std::move(start).error(); }
    Stored stored{db, batch.install};
    auto planned = plan(batch.wishes, stored, host, ranges, *start);
    if (!planned) { return std::move(planned).error(); }
    if (planned->refusal) { return Reserved{{}, false, std::move(planned->refusal)}; }
    Reserved out;
    auto added = insert(db, batch, planned->granted, out.leases);
    if (!added) { return std::move(added).error(); }
    return out;
}

Result<Done> bind(Connection& db, Install install, const std::string& owner, const std::string& vm, std::uint64_t now_ms)
{
    auto known = number_where(db, "SELECT count(*) FROM leases WHERE install = ? AND owner = ? AND state != 'released'", {install, owner});
    if (!known) { return std::move(known).error(); }
    if (owner.empty() || *known == 0)
    {
        return Error{Errc::not_found,
                     "'" + owner + "' has no leases: never reserved, given back, or run out",
                     "reserve them again",
                     {}};
    }
    return db.execute("UPDATE leases SET state = 'bound', since_ms = ?, vm = ? WHERE install = ? AND owner = ? AND state = 'reserved'",
                      {now_ms, vm, install, owner});
}

Result<std::vector<schema::Lease>> release(Connection& db, Install install, const std::string& owner, const std::string& id,
                                           std::uint64_t now_ms)
{
    if (owner.empty() && id.empty()) { return Error{Errc::invalid_argument, "owner or id must be given", {}, {}}; }
    auto released = id.empty()      ? release_where(db, "install = ? AND owner = ?", {install, owner}, now_ms)
                    : owner.empty() ? release_where(db, "install = ? AND number = ?", {install, number_of(id)}, now_ms)
                                    : release_where(db, "install = ? AND owner = ? AND number = ?", {install, owner, number_of(id)}, now_ms);
    if (!released) { return std::move(released).error(); }
    return without_installs(std::move(*released));
}

Result<std::vector<Released>> release_install(Connection& db, Install install, std::uint64_t now_ms)
{
    auto released = release_where(db, "install = ?", {install}, now_ms);
    if (!released) { return released; }
    auto forgotten = db.execute("DELETE FROM outbox WHERE install = ?", {install});
    if (!forgotten) { return std::move(forgotten).error(); }
    auto removed = db.execute("DELETE FROM installs WHERE number = ?", {install});
    if (!removed) { return std::move(removed).error(); }
    return released;
}

Result<std::vector<Released>> expire(Connection& db, std::uint64_t now_ms)
{
    return release_where(db, "state = 'reserved' AND expires_ms <= ?", {now_ms}, now_ms);
}

namespace
{
std::string tail_of(const Page& page)
{
    std::string tail = "number > ? AND state != 'released'";
    tail += page.install == 0 ? " AND ? = 0" : page.owner.empty() ? " AND +install = ?" : " AND install = ?"; // the plus: not by that index
    tail += page.owner.empty() ? " AND ? = ''" : " AND owner = ?";
    return tail + " ORDER BY number LIMIT ?";
}

std::int64_t begin_of(const Page& page) { return static_cast<std::int64_t>(std::min<std::uint64_t>(page.after, std::uint64_t{1} << 62)); }
} // namespace

Result<Listed> list(Connection& db, Install here, const Page& page)
{
    const std::uint32_t limit = page.limit == 0 ? max_page : std::min(page.limit, max_page);
    auto leases = select_for(db, here, tail_of(page), {begin_of(page), page.install, page.owner, limit});
    if (!leases) { return std::move(leases).error(); }
    Listed out{std::move(*leases)};
    if (out.leases.size() == limit) { out.next = static_cast<std::uint64_t>(number_of(out.leases.back().id)); }
    return out;
}

Result<Rows> list_rows(Connection& db, Install here, const Page& page)
{
    const std::uint32_t limit = page.limit == 0 ? max_rows : std::min(page.limit, max_rows);
    auto known = installs(db);
    if (!known) { return std::move(known).error(); }
    Rows out;
    std::uint32_t count = 0;
    std::int64_t last = 0;
    const auto add = [&](const state::Statement& row)
    {
        ++count;
        last = row.column_int(0);
        out.text += "lease-";
        out.text += std::to_string(last);
        for (int column = 1; column < install_column; ++column)
        {
            out.text += '\t';
            // purpose, VM and the like are printable ASCII by the time that they are kept
            const bool ended = column == 9 && row.column_view(7) != "reserved"; // what is bound does not expire
            if (!ended) { out.text += row.column_view(column); }
        }
        out.text += '\t';
        const Install install = row.column_int(install_column);
        if (install != here)
        {
            const auto name = std::find_if(known->begin(), known->end(), [&](const InstallRow& one) { return one.number == install; });
            if (name != known->end()) { out.text += name->state_dir; }
        }
        out.text += '\t';
        out.text += row.column_view(12);
        out.text += '\n';
    };
    // A page ends before its text is too long for one answer
    auto rows = db.query("SELECT " + std::string{columns} + " FROM leases WHERE " + tail_of(page), {begin_of(page), page.install, page.owner, limit});
    if (!rows) { return std::move(rows).error(); }
    for (;;)
    {
        auto row = rows->step();
        if (!row) { return std::move(row).error(); }
        if (!*row) { break; }
        add(*rows);
        if (out.text.size() > max_rows_bytes)
        {
            out.next = static_cast<std::uint64_t>(last);
            return out;
        }
    }
    if (count == limit) { out.next = static_cast<std::uint64_t>(last); }
    return out;
}

Result<std::optional<schema::Lease>> find(Connection& db, Install here, const std::string& id)
{
    auto leases = select_for(db, here, "number = ? AND state != 'released'", {number_of(id)});
    if (!leases) { return std::move(leases).error(); }
    return leases->empty() ? std::optional<schema::Lease>{} : std::optional{std::move(leases->front())};
}

Result<std::vector<schema::Lease>> holders(Connection& db, Install here, Kind kind, std::uint32_t value)
{
    return select_for(db, here, "kind = ? AND protocol IN ('', 'tcp', 'udp') AND value = ? AND state != 'released' ORDER BY number",
                      {to_string(kind), value});
}

Result<std::vector<Watched>> watched(Connection& db, Install install, std::uint32_t limit)
{
    auto rows = db.query(std::string{"SELECT number, kind, protocol, address, value, owner, state, since_ms, caller FROM leases WHERE state != 'released'"} +
                             (install == 0 ? " AND ? = 0" : " AND +install = ?") + " ORDER BY number LIMIT ?",
                         {install, limit});
    if (!rows) { return std::move(rows).error(); }
    std::vector<Watched> out;
    for (;;)
    {
        auto row = rows->step();
        if (!row) { return std::move(row).error(); }
        if (!*row) { return out; }
        Watched one;
        one.id = "lease-" + std::to_string(rows->column_int(0));
        one.resource.kind = kind_of(rows->column_view(1)).value_or(Kind::port);
        one.resource.protocol = rows->column_text(2);
        one.resource.address = Address::parse(rows->column_view(3));
        one.resource.value = static_cast<std::uint32_t>(rows->column_int(4));
        one.owner = rows->column_text(5);
        one.bound = rows->column_view(6) == "bound";
        one.since_ms = static_cast<std::uint64_t>(rows->column_int(7));
        one.by_service = rows->column_view(8).find(':') == std::string_view::npos; // "operator:uid=0:pid=1"
        out.push_back(std::move(one));
    }
}

Result<Done> prune(Connection& db, std::uint64_t now_ms)
{
    auto pruned = db.execute("DELETE FROM leases WHERE state = 'released' AND since_ms < ?",
                             {now_ms > keep_ms ? now_ms - keep_ms : 0});
    if (!pruned) { return pruned; }
    return db.execute("DELETE FROM batches WHERE NOT EXISTS (SELECT 1 FROM leases WHERE leases.install = batches.install"
                      " AND leases.owner = batches.owner AND batch = key)");
}

Result<std::size_t> adopt(Connection& db, Install install, Connection& old)
{
    std::size_t moved = 0;
    auto rows = old.query("SELECT owner, batch, kind, protocol, address, value, purpose, state, since_ms, expires_ms, caller, vm"
                          " FROM leases WHERE state != 'released' ORDER BY number");
    if (!rows) { return std::move(rows).error(); }
    for (;;)
    {
        auto row = rows->step();
        if (!row) { return std::move(row).error(); }
        if (!*row) { break; }
        auto there = number_where(db, "SELECT count(*) FROM leases WHERE install = ? AND owner = ? AND batch = ? AND kind = ?"
                                      " AND protocol = ? AND address = ? AND value = ?",
                                  {install, rows->column_view(0), rows->column_view(1), rows->column_view(2), rows->column_view(3),
                                   rows->column_view(4), rows->column_int(5)});
        if (!there) { return std::move(there).error(); }
        if (*there != 0) { continue; }
        auto added = db.execute("INSERT INTO leases(install, owner, batch, kind, protocol, address, value, purpose, state, since_ms,"
                                " expires_ms, caller, vm) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                                {install, rows->column_view(0), rows->column_view(1), rows->column_view(2), rows->column_view(3),
                                 rows->column_view(4), rows->column_int(5), rows->column_view(6), rows->column_view(7), rows->column_int(8),
                                 rows->column_int(9), rows->column_view(10), rows->column_view(11)});
        if (!added) { return std::move(added).error(); }
        ++moved;
    }
    auto keys = old.query("SELECT owner, key, wishes FROM batches WHERE EXISTS (SELECT 1 FROM leases WHERE leases.owner = batches.owner"
                          " AND batch = key AND state != 'released')");
    if (!keys) { return std::move(keys).error(); }
    for (;;)
    {
        auto row = keys->step();
        if (!row) { return std::move(row).error(); }
        if (!*row) { break; }
        auto added = db.execute("INSERT OR IGNORE INTO batches VALUES(?, ?, ?, ?)",
                                {install, keys->column_view(0), keys->column_view(1), keys->column_view(2)});
        if (!added) { return std::move(added).error(); }
    }
    auto events = old.query("SELECT id, type, subject, severity, time_ms, traceparent, data FROM outbox ORDER BY number");
    if (!events) { return std::move(events).error(); }
    for (;;)
    {
        auto row = events->step();
        if (!row) { return std::move(row).error(); }
        if (!*row) { return moved; }
        auto added = db.execute("INSERT INTO outbox(install, id, type, subject, severity, time_ms, traceparent, data)"
                                " SELECT ?, ?, ?, ?, ?, ?, ?, ? WHERE NOT EXISTS (SELECT 1 FROM outbox WHERE id = ?)",
                                {install, events->column_view(0), events->column_view(1), events->column_view(2), events->column_view(3),
                                 events->column_int(4), events->column_view(5), events->column_view(6), events->column_view(0)});
        if (!added) { return std::move(added).error(); }
    }
}

} // namespace dstack::allocator
