#include "services/allocator/lease_store.hpp"
#include "tests/catch.hpp"
#include "tests/unit/state/scratch.hpp"

using namespace dstack;
using namespace dstack::allocator;

namespace
{

constexpr std::uint64_t now = 1'700'000'000'000;
const Ranges ranges{1000, 1009, 18000, 18009};

class IdleHost : public HostFacts
{
  public:
    Result<std::optional<std::string>> holder(const Resource&) override { return std::optional<std::string>{}; }
    bool is_ephemeral(std::uint16_t) override { return false; }
};

/// A database in a directory of its own.
class Store
{
  public:
    Store()
    {
        auto db = state::Connection::open(scratch_ / "leases.db");
        REQUIRE(db);
        db_ = std::move(*db);
        REQUIRE(db_->exec(lease_tables()));
    }
    state::Connection& operator*() { return *db_; }

  private:
    Scratch scratch_;
    std::unique_ptr<state::Connection> db_;
};

schema::LeaseReserve request(const std::string& owner, const std::string& key, std::vector<schema::LeaseWish> wishes)
{
    schema::LeaseReserve out;
    out.owner = owner;
    out.key = key;
    out.wishes = std::move(wishes);
    out.ttl_ms = 60'000;
    return out;
}

schema::LeaseWish wish(const std::string& kind, std::uint32_t value)
{
    schema::LeaseWish out;
    out.kind = kind;
    out.value = value;
    out.purpose = "test";
    return out;
}

Result<Reserved> reserved(state::Connection& db, const schema::LeaseReserve& what, std::uint64_t at = now)
{
    auto batch = make_batch(what, at);
    REQUIRE(batch);
    IdleHost host;
    return reserve(db, *batch, host, ranges);
}

} // namespace

TEST_CASE("a batch is granted once, and again under its key")
{
    Store db;
    const auto what = request("vm-1", "k1", {wish("cid", 0), wish("port", 0), wish("port", 8080)});
    auto first = reserved(*db, what);
    REQUIRE((first && !first->refusal));
    REQUIRE(first->leases.size() == 3);
    CHECK_FALSE(first->again);
    CHECK(first->leases[0].kind == "cid");
    CHECK(first->leases[0].value == 1000);
    CHECK(first->leases[1].value == 18000);
    CHECK(first->leases[2].value == 8080);
    CHECK(first->leases[2].address == "127.0.0.1");
    CHECK(first->leases[2].state == "reserved");
    CHECK(first->leases[2].since == "2023-11-14T22:13:20.000Z");

    auto again = reserved(*db, what, now + 1);
    REQUIRE(again);
    CHECK(again->again);
    REQUIRE(again->leases.size() == 3);
    for (std::size_t i = 0; i < 3; ++i) { CHECK(again->leases[i].id == first->leases[i].id); }

    auto other = reserved(*db, request("vm-1", "k1", {wish("cid", 0)}));
    REQUIRE_FALSE(other);
    CHECK(other.error().code == Errc::invalid_argument);
    // the same key of another owner is another batch
    auto stranger = reserved(*db, request("vm-2", "k1", {wish("cid", 0)}));
    REQUIRE((stranger && !stranger->refusal));
    CHECK(stranger->leases[0].value == 1001);
}

TEST_CASE("a refusal names the owner and grants nothing")
{
    Store db;
    REQUIRE(reserved(*db, request("hello", "k1", {wish("port", 8080)})));
    auto refused = reserved(*db, request("other", "k1", {wish("cid", 0), wish("port", 8080)}));
    REQUIRE((refused && refused->refusal));
    CHECK(refused->refusal->error.message == "tcp 127.0.0.1:8080 is taken: leased to hello (test)");
    auto all = list(*db, "");
    REQUIRE(all);
    CHECK(all->size() == 1);
    // the key of a refused batch is free: it may be granted later
    REQUIRE(release(*db, "hello", "", now));
    auto later = reserved(*db, request("other", "k1", {wish("cid", 0), wish("port", 8080)}));
    REQUIRE(later);
    CHECK_FALSE(later->refusal);
}

TEST_CASE("reserved, bound, released")
{
    Store db;
    auto unknown = bind(*db, "vm-1", now);
    REQUIRE_FALSE(unknown);
    CHECK(unknown.error().code == Errc::not_found);

    REQUIRE(reserved(*db, request("vm-1", "k1", {wish("cid", 0), wish("port", 0)})));
    REQUIRE(bind(*db, "vm-1", now + 5));
    REQUIRE(bind(*db, "vm-1", now + 6)); // twice is fine
    auto bound = list(*db, "vm-1");
    REQUIRE(bound);
    REQUIRE(bound->size() == 2);
    CHECK((*bound)[0].state == "bound");
    CHECK((*bound)[0].since == "2023-11-14T22:13:20.005Z");

    // bound ones do not run out
    auto expired = expire(*db, now + 1'000'000);
    REQUIRE(expired);
    CHECK(expired->empty());

    auto one = release(*db, "", (*bound)[1].id, now + 7);
    REQUIRE(one);
    REQUIRE(one->size() == 1);
    CHECK((*one)[0].kind == "port");
    CHECK((*one)[0].state == "released");
    auto rest = release(*db, "vm-1", "", now + 8);
    REQUIRE(rest);
    CHECK(rest->size() == 1);
    auto none = release(*db, "vm-1", "", now + 9);
    REQUIRE(none);
    CHECK(none->empty());
    auto nobody = release(*db, "", "", now);
    REQUIRE_FALSE(nobody);
    CHECK(nobody.error().code == Errc::invalid_argument);

    // what is gone is gone: the old key does not bring it back
    auto again = reserved(*db, request("vm-1", "k1", {wish("cid", 0), wish("port", 0)}));
    REQUIRE_FALSE(again);
    CHECK(again.error().code == Errc::failed_precondition);
    // and what was just given back is not the next to be given out
    auto next = reserved(*db, request("vm-1", "k2", {wish("cid", 0), wish("port", 0)}));
    REQUIRE((next && !next->refusal));
    CHECK(next->leases[0].value == 1001);
    CHECK(next->leases[1].value == 18001);
}

TEST_CASE("a reservation runs out unless it is renewed")
{
    Store db;
    const auto what = request("vm-1", "k1", {wish("port", 8080)});
    REQUIRE(reserved(*db, what, now));
    REQUIRE(reserved(*db, what, now + 30'000)); // 90 s from now
    auto early = expire(*db, now + 89'999);
    REQUIRE(early);
    CHECK(early->empty());
    auto due = expire(*db, now + 90'000);
    REQUIRE(due);
    REQUIRE(due->size() == 1);
    CHECK((*due)[0].value == 8080);
    CHECK(list(*db, "")->empty());
}

TEST_CASE("what was given back is forgotten after a week")
{
    Store db;
    const auto what = request("vm-1", "k1", {wish("port", 8080)});
    REQUIRE(reserved(*db, what));
    REQUIRE(release(*db, "vm-1", "", now));
    constexpr std::uint64_t week = 7ull * 24 * 3600 * 1000;
    REQUIRE(prune(*db, now + week));
    CHECK_FALSE(reserved(*db, what));
    REQUIRE(prune(*db, now + week + 1));
    CHECK(reserved(*db, what));
}

TEST_CASE("requests are checked")
{
    struct Row
    {
        schema::LeaseReserve request;
        std::string message;
    };
    const Row rows[] = {
        {request("", "k", {wish("cid", 0)}), "owner: must be 1 to 128 printable ASCII characters, no space at an end"},
        {request("a ", "k", {wish("cid", 0)}), "owner: must be 1 to 128 printable ASCII characters, no space at an end"},
        {request("a", "", {wish("cid", 0)}), "key: must be 1 to 128 printable ASCII characters without spaces"},
        {request("a", std::string(129, 'k'), {wish("cid", 0)}),
         "key: must be 1 to 128 printable ASCII characters without spaces"},
        {request("a", "k", {}), "wishes: must be 1 to 64"},
        {request("a", "k", std::vector<schema::LeaseWish>(65, wish("cid", 0))), "wishes: must be 1 to 64"},
        {request("a", "k", {wish("cid", 0), wish("gpu", 0)}), "wishes[1].kind: must be cid or port"},
    };
    CHECK(make_batch(request("a b", "k", {wish("cid", 0)}), now)); // as a VMM's names
    for (const Row& row : rows)
    {
        auto batch = make_batch(row.request, now);
        REQUIRE_FALSE(batch);
        CHECK(batch.error().message == row.message);
    }
}
