#pragma once
#include "bus/schema/lease.hpp"
#include "services/allocator/plan.hpp"
#include "services/allocator/reconcile.hpp"
#include "shared/state/database.hpp"

namespace dstack::allocator
{

// Leases in SQLite. One database may serve every install of a host: each decision is made inside a transaction of the
// caller (BEGIN IMMEDIATE), so that it sees what the others were granted, and costs a handful of index look-ups, however
// many leases there are.

/// The migrations of leases.db, from its first version on.
std::vector<std::string> lease_migrations();

/// Which mesh a lease belongs to: a number in the database, made by register_install.
using Install = std::int64_t;

/// `id`: of state_dir/install-id. The same id is the same install, wherever its directory moved.
Result<Install> register_install(state::Connection& db, const std::string& id, const std::string& state_dir,
                                 std::uint64_t now_ms);
struct InstallRow
{
    Install number = 0;
    std::string id;
    std::string state_dir;
};
Result<std::vector<InstallRow>> installs(state::Connection& db);

struct Quotas
{
    std::uint32_t ports_per_app = 256;
    std::uint32_t cids_per_app = 64;
    std::uint32_t leases_per_host = 200'000;
};

struct Batch
{
    std::string owner;
    std::string key;
    std::vector<Wish> wishes;
    std::uint64_t now_ms = 0;
    std::uint64_t expires_ms = 0;
    Install install = 1;
    std::string caller{};
};

/// Checks names and sizes, and turns the bus' words into wishes.
Result<Batch> make_batch(const schema::LeaseReserve& request, std::uint64_t now_ms);

struct Reserved
{
    std::vector<schema::Lease> leases;
    bool again = false; ///< this batch was there already; only its time was prolonged
    std::optional<Refusal> refusal{};
};
/// Writes nothing when it refuses, so that many batches can share one transaction.
Result<Reserved> reserve(state::Connection& db, const Batch& batch, HostFacts& host, const Ranges& ranges,
                         const Quotas& quotas = {});

/// not_found when the owner has nothing that is reserved or bound.
Result<Done> bind(state::Connection& db, Install install, const std::string& owner, const std::string& vm,
                  std::uint64_t now_ms);

/// A lease that has just been released, and whose it was.
struct Released
{
    Install install = 0;
    schema::Lease lease;
};
/// By owner or, when that is empty, by lease id. What was given back, in order.
Result<std::vector<schema::Lease>> release(state::Connection& db, Install install, const std::string& owner,
                                           const std::string& id, std::uint64_t now_ms);
/// Everything of an install that is gone.
Result<std::vector<Released>> release_install(state::Connection& db, Install install, std::uint64_t now_ms);
/// Gives back the reservations whose time is over, of every install.
Result<std::vector<Released>> expire(state::Connection& db, std::uint64_t now_ms);

struct Page
{
    Install install = 0; ///< 0: of all
    std::string owner{}; ///< empty: of all
    std::uint64_t after = 0;
    std::uint32_t limit = 2000;
};
struct Listed
{
    std::vector<schema::Lease> leases;
    std::uint64_t next = 0; ///< 0: that was all
};
/// Reserved and bound ones, in the order they were granted. `install` is empty in those of `here`.
Result<Listed> list(state::Connection& db, Install here, const Page& page);
/// The same as lines of text, as lease.list has them.
struct Rows
{
    std::string text;
    std::uint64_t next = 0;
};
Result<Rows> list_rows(state::Connection& db, Install here, const Page& page);
/// In force, by id; nullopt: there is none.
Result<std::optional<schema::Lease>> find(state::Connection& db, Install here, const std::string& id);
/// What is in force, of one install or (0) of all, for the watch; at most `limit`.
Result<std::vector<Watched>> watched(state::Connection& db, Install install, std::uint32_t limit);
/// Those that are in the way of `resource`: a port of any protocol and address when these are empty.
Result<std::vector<schema::Lease>> holders(state::Connection& db, Install here, Kind kind, std::uint32_t value);

/// Forgets what was given back a week ago.
Result<Done> prune(state::Connection& db, std::uint64_t now_ms);

/// Moves what an install kept in a database of its own into this one. Twice is harmless.
Result<std::size_t> adopt(state::Connection& db, Install install, state::Connection& old);

} // namespace dstack::allocator
