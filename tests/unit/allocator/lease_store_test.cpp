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
        for (const std::string& migration : lease_migrations()) { REQUIRE(db_->exec(migration)); }
        REQUIRE(register_install(*db_, "one", "/srv/one", now));
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

Result<Reserved> reserved(state::Connection& db, const schema::LeaseReserve& what, std::uint64_t at = now, Install install = 1,
                          const Quotas& quotas = {})
{
    auto batch = make_batch(what, at);
    REQUIRE(batch);
    batch->install = install;
    IdleHost host;
    return reserve(db, *batch, host, ranges, quotas);
}

Result<std::vector<schema::Lease>> listed(state::Connection& db, const std::string& owner, Install install = 1)
{
    auto page = list(db, 1, {install, owner});
    if (!page) { return std::move(page).error(); }
    return std::move(page->leases);
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
    auto all = listed(*db, "");
    REQUIRE(all);
    CHECK(all->size() == 1);
    // the key of a refused batch is free: it may be granted later
    REQUIRE(release(*db, 1, "hello", "", now));
    auto later = reserved(*db, request("other", "k1", {wish("cid", 0), wish("port", 8080)}));
    REQUIRE(later);
    CHECK_FALSE(later->refusal);
}

TEST_CASE("reserved, bound, released")
{
    Store db;
    auto unknown = bind(*db, 1, "vm-1", "", now);
    REQUIRE_FALSE(unknown);
    CHECK(unknown.error().code == Errc::not_found);

    REQUIRE(reserved(*db, request("vm-1", "k1", {wish("cid", 0), wish("port", 0)})));
    REQUIRE(bind(*db, 1, "vm-1", "", now + 5));
    REQUIRE(bind(*db, 1, "vm-1", "", now + 6)); // twice is fine
    auto bound = listed(*db, "vm-1");
    REQUIRE(bound);
    REQUIRE(bound->size() == 2);
    CHECK((*bound)[0].state == "bound");
    CHECK((*bound)[0].since == "2023-11-14T22:13:20.005Z");

    // bound ones do not run out
    auto expired = expire(*db, now + 1'000'000);
    REQUIRE(expired);
    CHECK(expired->empty());

    auto one = release(*db, 1, "", (*bound)[1].id, now + 7);
    REQUIRE(one);
    REQUIRE(one->size() == 1);
    CHECK((*one)[0].kind == "port");
    CHECK((*one)[0].state == "released");
    auto rest = release(*db, 1, "vm-1", "", now + 8);
    REQUIRE(rest);
    CHECK(rest->size() == 1);
    auto none = release(*db, 1, "vm-1", "", now + 9);
    REQUIRE(none);
    CHECK(none->empty());
    auto nobody = release(*db, 1, "", "", now);
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
    CHECK((*due)[0].lease.value == 8080);
    CHECK(listed(*db, "")->empty());
}

TEST_CASE("what was given back is forgotten after a week")
{
    Store db;
    const auto what = request("vm-1", "k1", {wish("port", 8080)});
    REQUIRE(reserved(*db, what));
    REQUIRE(release(*db, 1, "vm-1", "", now));
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
        {request("a", "k", {wish("cid", 0), wish("gpu", 0)}), "wishes[1].kind: must be cid, port or vsock_port"},
    };
    CHECK(make_batch(request("a b", "k", {wish("cid", 0)}), now)); // as a VMM's names
    for (const Row& row : rows)
    {
        auto batch = make_batch(row.request, now);
        REQUIRE_FALSE(batch);
        CHECK(batch.error().message == row.message);
    }
}

TEST_CASE("two installs share the host and nothing else")
{
    Store db;
    auto second = register_install(*db, "two", "/srv/two", now);
    REQUIRE(second);
    CHECK(*register_install(*db, "two", "/srv/moved", now) == *second);
    REQUIRE(reserved(*db, request("hello", "k1", {wish("cid", 0), wish("port", 18000)})));
    // the same owner and key of another install: another batch, other values
    auto theirs = reserved(*db, request("hello", "k1", {wish("cid", 0), wish("port", 0)}), now, *second);
    REQUIRE((theirs && !theirs->refusal));
    CHECK(theirs->leases[0].value == 1001);
    CHECK(theirs->leases[1].value == 18001);
    auto refused = reserved(*db, request("hello", "k2", {wish("port", 18000)}), now, *second);
    REQUIRE((refused && refused->refusal));
    CHECK(refused->refusal->error.message == "tcp 127.0.0.1:18000 is taken: leased to hello of the install in /srv/one (test)");
    // nobody gives back what is another's
    auto none = release(*db, *second, "", "lease-1", now);
    REQUIRE(none);
    CHECK(none->empty());
    CHECK(listed(*db, "")->size() == 2);
    auto all = listed(*db, "", 0);
    REQUIRE(all);
    REQUIRE(all->size() == 4);
    CHECK((*all)[0].install.empty());
    CHECK((*all)[2].install == "/srv/moved");
    // an install that is gone leaves nothing behind
    auto gone = release_install(*db, *second, now);
    REQUIRE(gone);
    CHECK(gone->size() == 2);
    CHECK(installs(*db)->size() == 1);
    CHECK(listed(*db, "", 0)->size() == 2);
}

TEST_CASE("quotas say what was asked, what is free, and who has it")
{
    Store db;
    Quotas quotas;
    quotas.ports_per_app = 2;
    REQUIRE(reserved(*db, request("a", "k1", {wish("port", 0)}), now, 1, quotas));
    auto refused = reserved(*db, request("a", "k2", {wish("port", 0), wish("port", 0)}), now, 1, quotas);
    REQUIRE((refused && refused->refusal));
    CHECK(refused->refusal->error.code == Errc::resource_exhausted);
    CHECK(refused->refusal->error.message == "the quota of a is 2 ports: asked for 2, free 1, a has 1");
    CHECK(refused->refusal->error.hint.find("quota.ports_per_app") != std::string::npos);
    CHECK_FALSE(reserved(*db, request("b", "k1", {wish("port", 0), wish("port", 0)}), now, 1, quotas)->refusal);
    quotas.leases_per_host = 3;
    auto full = reserved(*db, request("c", "k1", {wish("cid", 0)}), now, 1, quotas);
    REQUIRE((full && full->refusal));
    CHECK(full->refusal->error.message == "the quota of this host is 3 leases: asked for 1, free 0, most are held by b 2, a 1");
    REQUIRE(release(*db, 1, "b", "", now));
    CHECK_FALSE(reserved(*db, request("c", "k1", {wish("cid", 0)}), now, 1, quotas)->refusal);
    REQUIRE(expire(*db, now + 60'000)); // the count follows every way out
    quotas.leases_per_host = 1;
    CHECK_FALSE(reserved(*db, request("d", "k1", {wish("cid", 0)}), now, 1, quotas)->refusal);
}

TEST_CASE("the last cid does not wrap")
{
    Store db;
    const Ranges edge{0xffff'fffd, 0xffff'fffe, 65535, 65535};
    const auto take = [&](const std::string& key, std::uint32_t value)
    {
        auto batch = make_batch(request("vm", key, {wish("cid", value)}), now);
        REQUIRE(batch);
        IdleHost host;
        auto out = reserve(*db, *batch, host, edge, {});
        REQUIRE(out);
        return out->refusal ? 0 : out->leases[0].value;
    };
    CHECK(take("k1", 0xffff'fffe) == 0xffff'fffe);
    CHECK(take("k2", 0) == 0xffff'fffd);
    CHECK(take("k3", 0) == 0); // no cid 0, 1 or 2 by going round
    REQUIRE(release(*db, 1, "vm", "", now));
    CHECK(take("k4", 0) == 0xffff'fffe);
    CHECK(take("k5", 0) == 0xffff'fffd);
}

TEST_CASE("pages")
{
    Store db;
    for (int i = 0; i < 5; ++i) { REQUIRE(reserved(*db, request("vm-" + std::to_string(i), "k", {wish("cid", 0)}))); }
    std::vector<std::string> owners;
    std::uint64_t after = 0;
    int pages = 0;
    do
    {
        auto page = list(*db, 1, {1, "", after, 2});
        REQUIRE(page);
        for (const auto& lease : page->leases) { owners.push_back(lease.owner); }
        after = page->next;
        ++pages;
    } while (after != 0);
    CHECK(pages == 3);
    CHECK(owners == std::vector<std::string>{"vm-0", "vm-1", "vm-2", "vm-3", "vm-4"});
}

TEST_CASE("a database of the first version is brought up to date and moved")
{
    Scratch scratch;
    auto old = state::Connection::open(scratch / "leases.db");
    REQUIRE(old);
    const auto migrations = lease_migrations();
    REQUIRE((*old)->exec(migrations[0] + migrations[1]));
    REQUIRE((*old)->exec("INSERT INTO batches VALUES('hello', 'k1', 'cid any test\n');"
                         "INSERT INTO leases(owner, batch, kind, protocol, address, value, purpose, state, since_ms, expires_ms)"
                         " VALUES('hello', 'k1', 'cid', '', '', 1000, 'test', 'bound', 1, 2), ('gone', 'k1', 'cid', '', '', 1001, '', 'released', 1, 2)"));
    REQUIRE((*old)->exec(migrations[2]));
    CHECK(*register_install(**old, "one", "/srv/one", now) == 1); // what was there is the first install's
    CHECK(listed(**old, "hello")->size() == 1);

    Store db;
    REQUIRE(register_install(*db, "two", "/srv/two", now));
    for (int twice = 0; twice < 2; ++twice)
    {
        auto moved = adopt(*db, 2, **old);
        REQUIRE(moved);
        CHECK(*moved == (twice == 0 ? 1U : 0U));
    }
    auto there = listed(*db, "", 2);
    REQUIRE(there);
    REQUIRE(there->size() == 1);
    CHECK((*there)[0].value == 1000);
    CHECK((*there)[0].state == "bound");
    auto again = reserved(*db, request("hello", "k1", {wish("cid", 0)}), now, 2);
    REQUIRE((again && !again->refusal));
    CHECK(again->again);
    CHECK(again->leases[0].value == 1000);
    CHECK(expire(*db, now)->empty());
}
