#pragma once
#include "bus/client/client.hpp"
#include "services/allocator/config.hpp"
#include "services/allocator/host.hpp"
#include "services/allocator/lease_store.hpp"
#include <deque>

namespace dstack::allocator
{

/// The leases on the loop: every call is one durable transaction, and reservations that come together share one. The
/// events of a change are committed with it and published until the broker has them.
class LeaseBook
{
  public:
    /// Opens the database and registers this install in it. Blocks: for start-up.
    static Result<std::unique_ptr<LeaseBook>> open(Loop& loop, const Config& config, bus::Client& bus);
    LeaseBook(const LeaseBook&) = delete;
    LeaseBook& operator=(const LeaseBook&) = delete;
    ~LeaseBook();

    Task<Result<Reserved>> reserve(Batch batch, std::string traceparent);
    Task<Result<Done>> bind(std::string owner, std::string vm);
    Task<Result<std::vector<schema::Lease>>> release(std::string owner, std::string id, std::string reason, std::string traceparent);
    /// What ran out, what belongs to an install that is gone, and events that are published already.
    Task<Result<Done>> sweep();
    Task<Result<Listed>> list(Page page);
    Task<Result<Rows>> list_rows(Page page);
    Task<Result<std::optional<schema::Lease>>> find(std::string id);
    Task<Result<std::vector<Watched>>> watched(bool all);
    Task<Result<std::vector<schema::Lease>>> holders(Kind kind, std::uint32_t value);
    /// An event of its own, durable when this returns.
    Task<Result<Done>> tell(bus::Client::OutgoingEvent event);

    const std::string& database_path() const { return path_; }
    bool is_host_wide() const { return host_wide_; }
    const std::string& warning() const { return warning_; } ///< why it is not host-wide; empty otherwise
    Install install() const { return install_; }

    /// Runs as long as the book is used: commits and publishes.
    void start(Scope& scope);

  private:
    struct Pending;
    LeaseBook(Loop& loop, const Config& config, bus::Client& bus);
    Result<Done> open_database(const Config& config);
    Result<Done> open_at(const std::string& path);
    Result<Done> register_here(const Config& config);
    Task<> commit_reservations();
    Task<> publish_events();
    Task<> publish_one(bus::Client::OutgoingEvent event);

    Loop& loop_;
    bus::Client& bus_;
    Ranges ranges_;
    Quotas quotas_;
    std::string path_;
    std::string warning_;
    bool host_wide_ = true;
    Install install_ = 0;
    std::shared_ptr<Kernel> kernel_; ///< used by jobs of database_ only: one thread
    std::unique_ptr<state::Database> database_;
    std::unique_ptr<state::Database> reader_;
    std::deque<std::shared_ptr<Pending>> waiting_;
    Event asked_;
    Event more_events_;
    std::int64_t published_ = 0; ///< events up to here need not be kept any more
    std::int64_t forgotten_ = 0; ///< and up to here they are deleted
    std::uint64_t pruned_ms_ = 0;
};

} // namespace dstack::allocator
