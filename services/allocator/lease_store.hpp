#pragma once
#include "bus/schema/lease.hpp"
#include "services/allocator/plan.hpp"
#include "shared/state/database.hpp"

namespace dstack::allocator
{

// Leases in SQLite. Every function runs inside a transaction of the caller, on the database's thread.

/// The migrations of leases.db, without the outbox.
std::string lease_tables();

struct Batch
{
    std::string owner;
    std::string key;
    std::vector<Wish> wishes;
    std::uint64_t now_ms = 0;
    std::uint64_t expires_ms = 0;
};

/// Checks names and sizes, and turns the bus' words into wishes.
Result<Batch> make_batch(const schema::LeaseReserve& request, std::uint64_t now_ms);

struct Reserved
{
    std::vector<schema::Lease> leases;
    bool again = false; ///< this batch was there already; only its time was prolonged
    std::optional<Refusal> refusal{};
};
Result<Reserved> reserve(state::Connection& db, const Batch& batch, HostFacts& host, const Ranges& ranges);

/// not_found when the owner has nothing that is reserved or bound.
Result<Done> bind(state::Connection& db, const std::string& owner, std::uint64_t now_ms);
/// By owner or, when that is empty, by lease id. What was given back, in order.
Result<std::vector<schema::Lease>> release(state::Connection& db, const std::string& owner, const std::string& id,
                                           std::uint64_t now_ms);
/// Gives back the reservations whose time is over.
Result<std::vector<schema::Lease>> expire(state::Connection& db, std::uint64_t now_ms);
/// Reserved and bound ones, in the order they were granted. An empty owner means all.
Result<std::vector<schema::Lease>> list(state::Connection& db, const std::string& owner);
/// Forgets what was given back a week ago.
Result<Done> prune(state::Connection& db, std::uint64_t now_ms);

} // namespace dstack::allocator
