#include "services/allocator/lease_store.hpp"
#include "shared/base/time.hpp"
#include <algorithm>

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
constexpr std::int64_t max_active = 10'000;

constexpr std::string_view columns = "number, kind, protocol, address, value, owner, purpose, state, since_ms";

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
    return out;
}

Result<std::vector<schema::Lease>> select(Connection& db, std::string_view where,
                                          std::initializer_list<state::Value> values)
{
    auto rows = db.query(
        "SELECT " + std::string{columns} + " FROM leases WHERE " + std::string{where} + " ORDER BY number", values);
    if (!rows) { return std::move(rows).error(); }
    std::vector<schema::Lease> out;
    for (;;)
    {
        auto row = rows->step();
        if (!row) { return std::move(row).error(); }
        if (!*row) { return out; }
        out.push_back(lease_of(*rows));
    }
}

/// Every row of the active leases that `where` names becomes released; they are returned as they are now.
Result<std::vector<schema::Lease>> release_where(Connection& db, std::string_view where,
                                                 std::initializer_list<state::Value> values, std::uint64_t now_ms)
{
    auto leases = select(db, "state IN ('reserved', 'bound') AND " + std::string{where}, values);
    if (!leases) { return leases; }
    for (schema::Lease& lease : *leases)
    {
        lease.state = "released";
        lease.since = rfc3339(now_ms);
        auto done = db.execute("UPDATE leases SET state = 'released', since_ms = ? WHERE 'lease-' || number = ?",
                               {now_ms, lease.id});
        if (!done) { return std::move(done).error(); }
    }
    return leases;
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
        "UPDATE leases SET expires_ms = max(expires_ms, ?) WHERE owner = ? AND batch = ? AND state = 'reserved'",
        {batch.expires_ms, batch.owner, batch.key});
    if (!prolonged) { return std::move(prolonged).error(); }
    auto leases = select(db, "owner = ? AND batch = ?", {batch.owner, batch.key});
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

Result<std::vector<Held>> held(Connection& db)
{
    auto leases = list(db, "");
    if (!leases) { return std::move(leases).error(); }
    std::vector<Held> out;
    for (schema::Lease& lease : *leases)
    {
        Resource resource{lease.kind == "cid" ? Kind::cid : Kind::port, lease.protocol, Address::parse(lease.address),
                          lease.value};
        out.push_back({std::move(resource), std::move(lease.owner), std::move(lease.purpose)});
    }
    return out;
}

/// After the newest grant within the range.
Result<Start> start_of(Connection& db, const Ranges& ranges)
{
    constexpr std::string_view sql =
        "SELECT value + 1 FROM leases WHERE kind = ? AND value BETWEEN ? AND ? ORDER BY number DESC LIMIT 1";
    auto cid = number_where(db, sql, {"cid", ranges.cid_first, ranges.cid_last});
    if (!cid) { return std::move(cid).error(); }
    auto port = number_where(db, sql, {"port", ranges.port_first, ranges.port_last});
    if (!port) { return std::move(port).error(); }
    return Start{static_cast<std::uint32_t>(*cid), static_cast<std::uint32_t>(*port)};
}

Result<Done> insert(Connection& db, const Batch& batch, const std::vector<Resource>& granted)
{
    auto kept = db.execute("INSERT INTO batches VALUES(?, ?, ?)", {batch.owner, batch.key, wishes_text(batch.wishes)});
    if (!kept) { return kept; }
    for (std::size_t i = 0; i < granted.size(); ++i)
    {
        const Resource& one = granted[i];
        const std::string address = one.address ? one.address->text() : "";
        auto added = db.execute(
            "INSERT INTO leases(owner, batch, kind, protocol, address, value, purpose, state, since_ms, expires_ms)"
            " VALUES(?, ?, ?, ?, ?, ?, ?, 'reserved', ?, ?)",
            {batch.owner, batch.key, to_string(one.kind), one.protocol, address, one.value, batch.wishes[i].purpose,
             batch.now_ms, batch.expires_ms});
        if (!added) { return added; }
    }
    return Done{};
}

} // namespace

std::string lease_tables()
{
    return "CREATE TABLE leases(number INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL, batch TEXT NOT NULL, "
           "kind TEXT NOT NULL,"
           " protocol TEXT NOT NULL, address TEXT NOT NULL, value INTEGER NOT NULL, purpose TEXT NOT NULL, state TEXT "
           "NOT NULL,"
           " since_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL);"
           "CREATE INDEX leases_owner ON leases(owner, batch);"
           "CREATE INDEX leases_active ON leases(state) WHERE state != 'released';"
           "CREATE TABLE batches(owner TEXT NOT NULL, key TEXT NOT NULL, wishes TEXT NOT NULL, PRIMARY KEY(owner, "
           "key)) WITHOUT ROWID;";
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
        auto wish = make_wish(i, one.kind, one.protocol, one.address, one.value, one.purpose);
        if (!wish) { return std::move(wish).error(); }
        out.wishes.push_back(std::move(*wish));
    }
    return out;
}

Result<Reserved> reserve(Connection& db, const Batch& batch, HostFacts& host, const Ranges& ranges)
{
    auto before = text_where(db, "SELECT wishes FROM batches WHERE owner = ? AND key = ?", {batch.owner, batch.key});
    if (!before) { return std::move(before).error(); }
    if (*before) { return repeat(db, batch, **before); }
    auto active = held(db);
    if (!active) { return std::move(active).error(); }
    if (std::ssize(*active) + std::ssize(batch.wishes) > max_active)
    {
        return Error{Errc::resource_exhausted,
                     "more than 10000 leases",
                     "release those that are not needed (`dstack leases`)",
                     {}};
    }
    auto start = start_of(db, ranges);
    if (!start) { return std::move(start).error(); }
    Plan planned = plan(batch.wishes, *active, host, ranges, *start);
    if (planned.refusal) { return Reserved{{}, false, std::move(planned.refusal)}; }
    auto added = insert(db, batch, planned.granted);
    if (!added) { return std::move(added).error(); }
    auto leases = select(db, "owner = ? AND batch = ?", {batch.owner, batch.key});
    if (!leases) { return std::move(leases).error(); }
    return Reserved{std::move(*leases), false};
}

Result<Done> bind(Connection& db, const std::string& owner, std::uint64_t now_ms)
{
    auto leases = list(db, owner);
    if (!leases) { return std::move(leases).error(); }
    if (owner.empty() || leases->empty())
    {
        return Error{Errc::not_found,
                     "'" + owner + "' has no leases: never reserved, given back, or run out",
                     "reserve them again",
                     {}};
    }
    return db.execute("UPDATE leases SET state = 'bound', since_ms = ? WHERE owner = ? AND state = 'reserved'",
                      {now_ms, owner});
}

Result<std::vector<schema::Lease>> release(Connection& db, const std::string& owner, const std::string& id,
                                           std::uint64_t now_ms)
{
    if (owner.empty() && id.empty()) { return Error{Errc::invalid_argument, "owner or id must be given", {}, {}}; }
    if (owner.empty()) { return release_where(db, "'lease-' || number = ?", {id}, now_ms); }
    if (id.empty()) { return release_where(db, "owner = ?", {owner}, now_ms); }
    return release_where(db, "owner = ? AND 'lease-' || number = ?", {owner, id}, now_ms);
}

Result<std::vector<schema::Lease>> expire(Connection& db, std::uint64_t now_ms)
{
    return release_where(db, "state = 'reserved' AND expires_ms <= ?", {now_ms}, now_ms);
}

Result<std::vector<schema::Lease>> list(Connection& db, const std::string& owner)
{
    if (owner.empty()) { return select(db, "state IN ('reserved', 'bound')", {}); }
    return select(db, "state IN ('reserved', 'bound') AND owner = ?", {owner});
}

Result<Done> prune(Connection& db, std::uint64_t now_ms)
{
    auto pruned = db.execute("DELETE FROM leases WHERE state = 'released' AND since_ms < ?",
                             {now_ms > keep_ms ? now_ms - keep_ms : 0});
    if (!pruned) { return pruned; }
    return db.execute("DELETE FROM batches WHERE NOT EXISTS (SELECT 1 FROM leases WHERE leases.owner = batches.owner "
                      "AND batch = key)");
}

} // namespace dstack::allocator
