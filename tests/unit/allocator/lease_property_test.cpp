#include "services/allocator/lease_store.hpp"
#include "tests/catch.hpp"
#include "tests/unit/state/scratch.hpp"
#include <cstdlib>
#include <map>
#include <random>
#include <set>

using namespace dstack;
using namespace dstack::allocator;

// Random steps of two installs on one database, against a model that is nothing but a list.

namespace
{

const Ranges ranges{1000, 1007, 18000, 18007, 20000, 20003};

/// A host on which others bind what they like.
class Wild : public HostFacts
{
  public:
    Result<std::optional<std::string>> holder(const Resource& resource) override
    {
        for (const Resource& one : foreign)
        {
            if (one.conflicts(resource)) { return std::optional<std::string>{"foreign, pid 1"}; }
        }
        return std::optional<std::string>{};
    }
    bool is_ephemeral(std::uint16_t port) override { return port == 18003; }
    std::vector<Resource> foreign;
};

struct Owned
{
    Install install;
    std::string owner;
    std::string key;
    std::string id;
    Resource resource;
    bool bound = false;
    std::uint64_t expires_ms = 0;
};

class Run
{
  public:
    explicit Run(unsigned seed) : random_(seed)
    {
        open();
        for (const std::string& migration : lease_migrations()) { REQUIRE(db_->exec(migration)); }
        REQUIRE(*register_install(*db_, "one", "/one", now_) == 1);
        REQUIRE(*register_install(*db_, "two", "/two", now_) == 2);
    }

    void step()
    {
        now_ += pick(2000);
        switch (pick(10))
        {
        case 0:
        case 1:
        case 2:
        case 3: reserve_some(); break;
        case 4: bind_one(); break;
        case 5: release_owner(); break;
        case 6: release_id(); break;
        case 7: run_out(); break;
        case 8: toggle_foreign(); break;
        default: crash(); break;
        }
        check();
    }

  private:
    unsigned pick(unsigned below) { return std::uniform_int_distribution<unsigned>{0, below - 1}(random_); }
    std::string owner() { return "vm-" + std::to_string(pick(5)); }
    Install install() { return 1 + static_cast<Install>(pick(2)); }

    void open()
    {
        db_.reset();
        auto db = state::Connection::open(scratch_ / "leases.db");
        REQUIRE(db);
        db_ = std::move(*db);
        REQUIRE(db_->exec("PRAGMA journal_mode = WAL"));
    }

    Resource some_resource(bool any)
    {
        const unsigned kind = pick(3);
        if (kind == 0) { return {Kind::cid, {}, {}, any ? 0 : 1000 + pick(10)}; }
        if (kind == 1) { return {Kind::vsock_port, {}, {}, any ? 0 : 20000 + pick(5)}; }
        static const char* const addresses[] = {"127.0.0.1", "127.0.0.2", "0.0.0.0", "::", "::1"};
        return {Kind::port, pick(3) == 0 ? "udp" : "tcp", Address::parse(addresses[pick(5)]), any ? 0 : 18000 + pick(10)};
    }

    const Owned* holder_of(const Resource& resource) const
    {
        for (const Owned& one : model_)
        {
            if (one.resource.conflicts(resource)) { return &one; }
        }
        return nullptr;
    }

    void reserve_some()
    {
        Batch batch{owner(), "k" + std::to_string(pick(40)), {}, now_, now_ + 5'000, install()};
        for (unsigned i = 0; i <= pick(3); ++i) { batch.wishes.push_back({some_resource(pick(2) == 0), "p"}); }
        const auto known = batches_.find({batch.install, batch.owner, batch.key});
        auto transaction = state::Transaction::begin(*db_);
        REQUIRE(transaction);
        auto done = reserve(*db_, batch, host_, ranges);
        const bool crashes = pick(6) == 0; // before the commit: as if nothing had been asked
        if (crashes)
        {
            {
                const state::Transaction undone = std::move(*transaction);
            }
            crash();
            return;
        }
        REQUIRE(transaction->commit());
        if (known != batches_.end())
        {
            if (done && !done->refusal)
            {
                REQUIRE(done->again); // never granted a second time
                for (auto& one : model_)
                {
                    if (one.install == batch.install && one.owner == batch.owner && one.key == batch.key && !one.bound)
                    {
                        one.expires_ms = std::max(one.expires_ms, batch.expires_ms);
                    }
                }
            }
            return;
        }
        REQUIRE(done);
        if (done->refusal)
        {
            REQUIRE(done->leases.empty());
            return;
        }
        REQUIRE(done->leases.size() == batch.wishes.size());
        batches_.insert({batch.install, batch.owner, batch.key});
        for (std::size_t i = 0; i < done->leases.size(); ++i)
        {
            const auto& lease = done->leases[i];
            const Resource granted{*kind_of(lease.kind), lease.protocol, Address::parse(lease.address), lease.value};
            const Resource& wished = batch.wishes[i].resource;
            CAPTURE(granted.text());
            REQUIRE((wished.value == 0 || wished.value == granted.value));
            REQUIRE(holder_of(granted) == nullptr); // no double grant
            REQUIRE_FALSE(*host_.holder(granted));  // nor over a foreigner
            if (wished.value == 0) { REQUIRE(granted.value != 18003); }
            REQUIRE(ids_.insert(lease.id).second);
            model_.push_back({batch.install, batch.owner, batch.key, lease.id, granted, false, batch.expires_ms});
        }
    }

    void bind_one()
    {
        const Install of = install();
        const std::string who = owner();
        auto done = allocator::bind(*db_, of, who, "vm", now_);
        bool any = false;
        for (auto& one : model_)
        {
            if (one.install == of && one.owner == who)
            {
                one.bound = true;
                any = true;
            }
        }
        REQUIRE(static_cast<bool>(done) == any);
    }

    void release_owner()
    {
        const Install of = install();
        const std::string who = owner();
        auto done = release(*db_, of, who, "", now_);
        REQUIRE(done);
        REQUIRE(done->size() == std::erase_if(model_, [&](const Owned& one) { return one.install == of && one.owner == who; }));
    }

    void release_id()
    {
        if (model_.empty()) { return; }
        const Owned one = model_[pick(static_cast<unsigned>(model_.size()))];
        const Install of = install(); // of the other install it is not released
        auto done = release(*db_, of, "", one.id, now_);
        REQUIRE(done);
        REQUIRE(done->size() == (of == one.install ? 1U : 0U));
        if (of == one.install)
        {
            std::erase_if(model_, [&](const Owned& other) { return other.id == one.id; });
        }
    }

    void run_out()
    {
        auto done = expire(*db_, now_);
        REQUIRE(done);
        REQUIRE(done->size() == std::erase_if(model_, [&](const Owned& one) { return !one.bound && one.expires_ms <= now_; }));
    }

    void toggle_foreign()
    {
        if (host_.foreign.size() > 3) { host_.foreign.clear(); }
        else { host_.foreign.push_back(some_resource(false)); }
    }

    void crash() { open(); }

    void check()
    {
        auto all = list(*db_, 1, {});
        REQUIRE(all);
        REQUIRE(all->leases.size() == model_.size()); // no leak, no loss
        std::map<std::string, const schema::Lease*> by_id;
        for (const auto& lease : all->leases) { by_id[lease.id] = &lease; }
        for (const Owned& one : model_)
        {
            const auto found = by_id.find(one.id);
            REQUIRE(found != by_id.end());
            REQUIRE(found->second->value == one.resource.value);
            REQUIRE(found->second->state == (one.bound ? "bound" : "reserved"));
        }
        auto rows = db_->query("SELECT active FROM counts");
        REQUIRE(rows);
        REQUIRE(*rows->step());
        REQUIRE(rows->column_int(0) == static_cast<std::int64_t>(model_.size()));
    }

    Scratch scratch_;
    std::unique_ptr<state::Connection> db_;
    std::mt19937 random_;
    std::uint64_t now_ = 1'700'000'000'000;
    Wild host_;
    std::vector<Owned> model_;
    std::set<std::tuple<Install, std::string, std::string>> batches_;
    std::set<std::string> ids_;
};

} // namespace

TEST_CASE("random steps: no double grant, no leak, no loss")
{
    const char* given = std::getenv("DSTACK_PROPERTY_SEED");
    const unsigned seed = given != nullptr ? static_cast<unsigned>(std::strtoul(given, nullptr, 10)) : std::random_device{}();
    const int steps = 150;
    for (unsigned i = 0; i < 4; ++i)
    {
        CAPTURE(seed + i); // DSTACK_PROPERTY_SEED repeats it
        Run run{seed + i};
        for (int step = 0; step < steps; ++step) { run.step(); }
    }
}
