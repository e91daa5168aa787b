#include "services/allocator/service.hpp"
#include "bus/client/client.hpp"
#include "bus/client/outbox.hpp"
#include "services/allocator/host.hpp"
#include "services/allocator/lease_store.hpp"
#include "shared/base/time.hpp"
#include "shared/log/log.hpp"
#include "shared/state/files.hpp"

namespace dstack::allocator
{

namespace
{

constexpr milliseconds drain_limit{5000};
constexpr milliseconds connect_limit{5000};
constexpr milliseconds retry_after{500};
constexpr std::uint64_t prune_every_ms = 3'600'000;

using bus::CallContext;
using bus::Client;
using bus::Outbox;

Result<Done> add_granted(state::Connection& db, const std::vector<schema::Lease>& leases,
                         const std::string& traceparent)
{
    for (const schema::Lease& lease : leases)
    {
        auto added = Outbox::add(db, Client::make_event(schema::LeaseGranted{lease}, bus::Trace{traceparent}));
        if (!added) { return added; }
    }
    return Done{};
}

Result<Done> add_released(state::Connection& db, const std::vector<schema::Lease>& leases, const std::string& reason,
                          const std::string& traceparent)
{
    for (const schema::Lease& lease : leases)
    {
        auto added = Outbox::add(db, Client::make_event(schema::LeaseReleased{lease, reason}, bus::Trace{traceparent}));
        if (!added) { return added; }
    }
    return Done{};
}

Result<std::vector<schema::Lease>> expire_now(state::Connection& db, std::uint64_t now_ms)
{
    auto expired = expire(db, now_ms);
    if (!expired) { return expired; }
    auto added = add_released(db, *expired, "expired", "");
    if (!added) { return std::move(added).error(); }
    return expired;
}

/// One transaction: what ran out, the decision, and the events that tell of both. A refusal is a value here, so that
/// its event is committed.
Result<Reserved> reserve_now(state::Connection& db, const Batch& batch, const Ranges& ranges,
                             const std::string& traceparent)
{
    auto expired = expire_now(db, batch.now_ms);
    if (!expired) { return std::move(expired).error(); }
    Kernel kernel;
    auto reserved = reserve(db, batch, kernel, ranges);
    if (!reserved) { return reserved; }
    Result<Done> told{Done{}};
    if (reserved->refusal)
    {
        schema::LeaseRefused event;
        event.owner = batch.owner;
        event.wanted = reserved->refusal->wanted;
        event.reason = reserved->refusal->error.message;
        told = Outbox::add(db, Client::make_event(std::move(event), bus::Trace{traceparent}));
    }
    else if (!reserved->again) { told = add_granted(db, reserved->leases, traceparent); }
    if (!told) { return std::move(told).error(); }
    return reserved;
}

class Service
{
  public:
    Service(Daemon& daemon, Config config, std::unique_ptr<state::Database> database)
        : daemon_(daemon), loop_(daemon.loop()), config_(std::move(config)), database_(std::move(database)),
          bus_(loop_, bus::ClientConfig{config_.bus_directory, "allocator"}), outbox_(loop_, *database_, bus_),
          scope_(loop_)
    {
        ranges_ = Ranges{config_.cid_first, config_.cid_last, config_.port_first, config_.port_last};
    }

    Task<Result<Done>> run();

  private:
    void serve_commands();
    Task<> connect();
    Task<> sweep();

    Task<Result<schema::LeaseReserve::Reply>> reserve_leases(schema::LeaseReserve request, CallContext context);
    Task<Result<schema::Empty>> bind_leases(schema::LeaseBind request, CallContext context);
    Task<Result<schema::LeaseRelease::Reply>> release_leases(schema::LeaseRelease request, CallContext context);
    Task<Result<schema::LeaseList::Reply>> list_leases(schema::LeaseList request, CallContext context);

    Daemon& daemon_;
    Loop& loop_;
    Config config_;
    Ranges ranges_;
    std::unique_ptr<state::Database> database_;
    Client bus_;
    Outbox outbox_;
    Scope scope_; ///< its tasks use all of the above
};

Task<Result<Done>> Service::run()
{
    serve_commands();
    scope_.spawn(outbox_.run());
    scope_.spawn(sweep());
    scope_.spawn(connect());
    co_await daemon_.stop_requested();
    co_await bus_.disconnect(drain_limit);
    scope_.cancel();
    log::info("stopped");
    co_return Done{};
}

void Service::serve_commands()
{
    bus_.serve<schema::LeaseReserve>([this](schema::LeaseReserve request, CallContext context)
                                     { return reserve_leases(std::move(request), std::move(context)); });
    bus_.serve<schema::LeaseBind>([this](schema::LeaseBind request, CallContext context)
                                  { return bind_leases(std::move(request), std::move(context)); });
    bus_.serve<schema::LeaseRelease>([this](schema::LeaseRelease request, CallContext context)
                                     { return release_leases(std::move(request), std::move(context)); });
    bus_.serve<schema::LeaseList>([this](schema::LeaseList request, CallContext context)
                                  { return list_leases(std::move(request), std::move(context)); });
}

Task<> Service::connect()
{
    bool said = false;
    for (;;)
    {
        auto connected = co_await bus_.connect(connect_limit);
        if (connected) { break; }
        if (!said) { log::warn("not on the bus", {{"error", connected.error().message}}); }
        said = true;
        co_await sleep_for(loop_, retry_after);
    }
    daemon_.ready();
    log::info("serving", {{"cids", std::to_string(ranges_.cid_first) + "-" + std::to_string(ranges_.cid_last)},
                          {"ports", std::to_string(ranges_.port_first) + "-" + std::to_string(ranges_.port_last)}});
}

Task<> Service::sweep()
{
    std::uint64_t pruned_ms = 0;
    for (;;)
    {
        const std::uint64_t now_ms = unix_ms();
        const bool prunes = now_ms - pruned_ms >= prune_every_ms;
        auto job = [now_ms, prunes](state::Connection& db) -> Result<std::vector<schema::Lease>>
        {
            auto pruned = prunes ? prune(db, now_ms) : Result<Done>{Done{}};
            if (!pruned) { return std::move(pruned).error(); }
            return expire_now(db, now_ms);
        };
        auto expired = co_await database_->run(job);
        if (!expired) { log::error("leases not swept", {{"error", expired.error().message}}); }
        else
        {
            if (prunes) { pruned_ms = now_ms; }
            for (const schema::Lease& lease : *expired)
            {
                log::info("lease expired", {{"id", lease.id}, {"owner", lease.owner}, {"value", lease.value}});
            }
            if (!expired->empty()) { outbox_.wake(); }
        }
        co_await sleep_for(loop_, config_.sweep);
    }
}

Task<Result<schema::LeaseReserve::Reply>> Service::reserve_leases(schema::LeaseReserve request, CallContext context)
{
    auto batch = make_batch(request, unix_ms());
    if (!batch) { co_return std::move(batch).error(); }
    auto job = [batch = std::move(*batch), ranges = ranges_, trace = context.traceparent](state::Connection& db)
    { return reserve_now(db, batch, ranges, trace); };
    auto reserved = co_await database_->run(job);
    if (!reserved) { co_return std::move(reserved).error(); }
    outbox_.wake();
    if (reserved->refusal)
    {
        log::info("lease refused", {{"owner", request.owner},
                                    {"wanted", reserved->refusal->wanted},
                                    {"reason", reserved->refusal->error.message}});
        co_return std::move(reserved->refusal->error);
    }
    for (const schema::Lease& lease : reserved->leases)
    {
        log::info("lease granted",
                  {{"id", lease.id}, {"owner", lease.owner}, {"kind", lease.kind}, {"value", lease.value}});
    }
    schema::LeaseReserve::Reply reply;
    reply.leases = std::move(reserved->leases);
    co_return reply;
}

Task<Result<schema::Empty>> Service::bind_leases(schema::LeaseBind request, CallContext)
{
    auto job = [owner = request.owner, now_ms = unix_ms()](state::Connection& db) { return bind(db, owner, now_ms); };
    auto bound = co_await database_->run(job);
    if (!bound) { co_return std::move(bound).error(); }
    co_return schema::Empty{};
}

Task<Result<schema::LeaseRelease::Reply>> Service::release_leases(schema::LeaseRelease request, CallContext context)
{
    const std::string reason =
        request.reason.empty() ? "released by " + context.caller : request.reason.substr(0, 1000);
    auto job = [request, reason, trace = context.traceparent,
                now_ms = unix_ms()](state::Connection& db) -> Result<std::vector<schema::Lease>>
    {
        auto released = release(db, request.owner, request.id, now_ms);
        if (!released) { return released; }
        auto told = add_released(db, *released, reason, trace);
        if (!told) { return std::move(told).error(); }
        return released;
    };
    auto released = co_await database_->run(job);
    if (!released) { co_return std::move(released).error(); }
    outbox_.wake();
    for (const schema::Lease& lease : *released)
    {
        log::info("lease released", {{"id", lease.id},
                                     {"owner", lease.owner},
                                     {"kind", lease.kind},
                                     {"value", lease.value},
                                     {"reason", reason}});
    }
    schema::LeaseRelease::Reply reply;
    reply.released = static_cast<std::uint32_t>(released->size());
    co_return reply;
}

Task<Result<schema::LeaseList::Reply>> Service::list_leases(schema::LeaseList request, CallContext)
{
    auto job = [owner = request.owner](state::Connection& db) { return list(db, owner); };
    auto leases = co_await database_->run(job);
    if (!leases) { co_return std::move(leases).error(); }
    schema::LeaseList::Reply reply;
    reply.leases = std::move(*leases);
    co_return reply;
}

} // namespace

Task<Result<Done>> serve(Daemon& daemon, Config config)
{
    auto made = state::make_dirs(config.state_dir, 0750);
    if (!made) { co_return std::move(made).error(); }
    const std::vector<std::string> migrations{lease_tables(), std::string{Outbox::migration()}};
    auto database = state::Database::open(daemon.loop(), config.state_dir + "/leases.db", migrations);
    if (!database) { co_return std::move(database).error(); }
    Service service{daemon, std::move(config), std::move(*database)};
    co_return co_await service.run();
}

} // namespace dstack::allocator
