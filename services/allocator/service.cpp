#include "services/allocator/service.hpp"
#include "services/allocator/lease_book.hpp"
#include "services/allocator/watch.hpp"
#include "shared/base/time.hpp"
#include "shared/log/log.hpp"
#include "shared/state/files.hpp"
#include <malloc.h>

namespace dstack::allocator
{

namespace
{

constexpr milliseconds drain_limit{5000};
constexpr milliseconds connect_limit{5000};
constexpr milliseconds retry_after{500};
constexpr std::uint32_t max_uses = 1000;
constexpr std::size_t max_reservations = 256; ///< answered at once; they share transactions

using bus::CallContext;
using bus::Client;

class Service
{
  public:
    Service(Daemon& daemon, Config config)
        : daemon_(daemon), loop_(daemon.loop()), config_(std::move(config)), bus_(loop_, bus::ClientConfig{config_.bus_directory, "allocator"}),
          eyes_(std::make_shared<Eyes>(config_.privileged_ports)), scope_(loop_)
    {
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

    Task<Result<schema::LeaseHost::Reply>> show_host(schema::LeaseHost request, CallContext context);
    Task<Result<schema::LeaseExplain::Reply>> explain_lease(schema::LeaseExplain request, CallContext context);
    /// For operators: an error while the owner of what shall be released lives.
    Task<Result<Done>> check_release(std::string owner, std::string id);

    Daemon& daemon_;
    Loop& loop_;
    Config config_;
    Client bus_;
    std::unique_ptr<LeaseBook> book_;
    std::shared_ptr<Eyes> eyes_;
    std::unique_ptr<Watch> watch_;
    std::vector<schema::HostUse> looked_; ///< the pages of the last lease.host that are still to be asked for
    Scope scope_; ///< its tasks use all of the above
};

Task<Result<Done>> Service::run()
{
    auto book = LeaseBook::open(loop_, config_, bus_);
    if (!book) { co_return std::move(book).error(); }
    book_ = std::move(*book);
    if (!book_->warning().empty()) { log::warn("leases of this install only", {{"reason", book_->warning()}}); }
    serve_commands();
    book_->start(scope_);
    watch_ = std::make_unique<Watch>(loop_, config_, *book_, bus_, eyes_);
    scope_.spawn(sweep());
    scope_.spawn(watch_->run());
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
                                     { return reserve_leases(std::move(request), std::move(context)); },
                                     max_reservations);
    bus_.serve<schema::LeaseBind>([this](schema::LeaseBind request, CallContext context)
                                  { return bind_leases(std::move(request), std::move(context)); });
    bus_.serve<schema::LeaseRelease>([this](schema::LeaseRelease request, CallContext context)
                                     { return release_leases(std::move(request), std::move(context)); });
    bus_.serve<schema::LeaseList>([this](schema::LeaseList request, CallContext context)
                                  { return list_leases(std::move(request), std::move(context)); });
    bus_.serve<schema::LeaseHost>([this](schema::LeaseHost request, CallContext context)
                                  { return show_host(std::move(request), std::move(context)); });
    bus_.serve<schema::LeaseExplain>([this](schema::LeaseExplain request, CallContext context)
                                     { return explain_lease(std::move(request), std::move(context)); });
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
    log::info("serving", {{"cids", std::to_string(config_.cid_first) + "-" + std::to_string(config_.cid_last)},
                          {"ports", std::to_string(config_.port_first) + "-" + std::to_string(config_.port_last)},
                          {"leases", book_->database_path()}});
}

Task<> Service::sweep()
{
    for (;;)
    {
        auto swept = co_await book_->sweep();
        if (!swept) { log::error("leases not swept", {{"error", swept.error().message}}); }
        co_await sleep_for(loop_, config_.sweep);
    }
}

Task<Result<schema::LeaseReserve::Reply>> Service::reserve_leases(schema::LeaseReserve request, CallContext context)
{
    auto batch = make_batch(request, unix_ms());
    if (!batch) { co_return std::move(batch).error(); }
    batch->caller = context.caller;
    auto reserved = co_await book_->reserve(std::move(*batch), std::move(context.traceparent));
    if (!reserved) { co_return std::move(reserved).error(); }
    if (reserved->refusal)
    {
        log::info("lease refused", {{"owner", request.owner},
                                    {"wanted", reserved->refusal->wanted},
                                    {"reason", reserved->refusal->error.message}});
        co_return std::move(reserved->refusal->error);
    }
    schema::LeaseReserve::Reply reply;
    reply.leases = std::move(reserved->leases);
    co_return reply;
}

Task<Result<schema::Empty>> Service::bind_leases(schema::LeaseBind request, CallContext)
{
    auto bound = co_await book_->bind(std::move(request.owner), std::move(request.vm));
    if (!bound) { co_return std::move(bound).error(); }
    co_return schema::Empty{};
}

Task<Result<schema::LeaseRelease::Reply>> Service::release_leases(schema::LeaseRelease request, CallContext context)
{
    const std::string reason =
        request.reason.empty() ? "released by " + context.caller : request.reason.substr(0, 1000);
    if (context.caller.find(':') != std::string::npos) // a person; services know what they do
    {
        auto may = co_await check_release(request.owner, request.id);
        if (!may) { co_return std::move(may).error(); }
    }
    auto released = co_await book_->release(std::move(request.owner), std::move(request.id), reason, std::move(context.traceparent));
    if (!released) { co_return std::move(released).error(); }
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
    Page page{request.all ? 0 : book_->install(), std::move(request.owner), request.after, request.limit};
    schema::LeaseList::Reply reply;
    reply.database = book_->database_path();
    reply.host_wide = book_->is_host_wide();
    if (request.compact)
    {
        auto rows = co_await book_->list_rows(std::move(page));
        if (!rows) { co_return std::move(rows).error(); }
        reply.rows = std::move(rows->text);
        reply.next = rows->next;
        co_return reply;
    }
    auto listed = co_await book_->list(std::move(page));
    if (!listed) { co_return std::move(listed).error(); }
    reply.leases = std::move(listed->leases);
    reply.next = listed->next;
    co_return reply;
}

Task<Result<Done>> Service::check_release(std::string owner, std::string id)
{
    bool of_deployer = true;
    if (!id.empty())
    {
        auto lease = co_await book_->find(id);
        if (!lease) { co_return std::move(lease).error(); }
        if (!*lease) { co_return Error{Errc::not_found, "no lease " + id + ": never granted, or given back", "`dstack leases` lists those in force", {}}; }
        if (!(*lease)->install.empty())
        {
            co_return Error{Errc::failed_precondition, id + " belongs to the install in " + (*lease)->install, "release it there (--prefix)", {}};
        }
        owner = (*lease)->owner;
        of_deployer = (*lease)->caller == "deployer";
    }
    auto leases = co_await book_->watched(false);
    if (!leases) { co_return std::move(leases).error(); }
    auto work = [eyes = eyes_] { return look_at(*eyes); };
    auto looked = co_await offload(loop_, work);
    const Process process = process_of(owner, *leases, looked.uses);
    if (process.pid != 0)
    {
        co_return Error{Errc::failed_precondition, "the owner " + owner + " lives: " + process.text(), "end it first; `dstack rm " + owner + "` gives back all that an app has", {}};
    }
    if (!of_deployer) { co_return Done{}; }
    auto apps = co_await watch_->apps();
    if (!apps) { co_return std::move(apps).error().within("cannot tell whether the app " + owner + " is still there"); }
    if (!apps->contains(owner)) { co_return Done{}; }
    co_return Error{Errc::failed_precondition, "the app " + owner + " is still there, and keeps its leases also while it is stopped", "`dstack rm " + owner + "` gives back all that it has", {}};
}

Task<Result<schema::LeaseHost::Reply>> Service::show_host(schema::LeaseHost request, CallContext)
{
    schema::LeaseHost::Reply reply;
    if (request.after == 0)
    {
        auto leases = co_await book_->watched(true);
        if (!leases) { co_return std::move(leases).error(); }
        auto work = [eyes = eyes_, held = std::move(*leases)]
        {
            const Looked looked = look_at(*eyes);
            return std::pair{uses_on_bus(looked.uses, held), looked.took_us};
        };
        auto looked = co_await offload(loop_, work);
        looked_ = std::move(looked.first);
        reply.look_us = looked.second;
    }
    const std::uint32_t limit = request.limit == 0 ? max_uses : std::min(request.limit, max_uses);
    const std::size_t first = std::min<std::size_t>(request.after, looked_.size());
    const std::size_t last = std::min<std::size_t>(first + limit, looked_.size());
    reply.uses.assign(looked_.begin() + static_cast<std::ptrdiff_t>(first), looked_.begin() + static_cast<std::ptrdiff_t>(last));
    reply.next = last < looked_.size() ? last : 0;
    if (reply.next == 0) { looked_ = {}; }
    co_return reply;
}

Task<Result<schema::LeaseExplain::Reply>> Service::explain_lease(schema::LeaseExplain request, CallContext)
{
    auto wanted = parse_question(request.what);
    if (!wanted) { co_return std::move(wanted).error(); }
    auto leases = co_await book_->holders(wanted->front().kind, wanted->front().value);
    if (!leases) { co_return std::move(leases).error(); }
    auto work = [eyes = eyes_, resources = std::move(*wanted), held = std::move(*leases)] { return explain(resources, held, *eyes); };
    auto reply = co_await offload(loop_, work);
    co_return std::move(reply);
}

} // namespace

Task<Result<Done>> serve(Daemon& daemon, Config config)
{
    // Pages of thousands of leases are rare and large: their memory goes back to the kernel at once.
    constexpr int large = 64 * 1024;
    ::mallopt(M_MMAP_THRESHOLD, large);
    ::mallopt(M_TRIM_THRESHOLD, 2 * large);
    auto made = state::make_dirs(config.state_dir, 0750);
    if (!made) { co_return std::move(made).error(); }
    Service service{daemon, std::move(config)};
    co_return co_await service.run();
}

} // namespace dstack::allocator
