#pragma once
#include "services/logs/config.hpp"
#include "services/logs/sources.hpp"
#include "services/logs/store.hpp"
#include "services/logs/tailer.hpp"
#include "shared/runtime/scope.hpp"
#include <functional>
#include <map>
#include <memory>

namespace dstack::logs
{

/// One VM or service while this process runs. Readers hold it too, so that it outlives its removal from the list.
struct Source
{
    Source(Loop& loop, SourceInfo i) : info(std::move(i)), changed(loop), wake(loop) {}
    SourceInfo info;
    std::shared_ptr<LineStore> store;
    std::uint64_t next = 1;  ///< of the store, as the loop knows it
    bool finished = false;   ///< removed, and all of its file has been read
    bool dropped = false;    ///< its lines were removed for the total quota
    Event changed;           ///< pulsed when `next`, `finished` or `dropped` change
    Event wake;              ///< the file changed, or what we know of it
    bool complained = false; ///< the present trouble is in the log already
};

/// Finds, follows and keeps everything: one task per source. Files are read on pool threads, never on the loop.
class Collector
{
  public:
    /// `on_loss`: a gap was written for this source.
    Collector(Loop& loop, const Config& config, std::function<void(const SourceInfo&, const Loss&)> on_loss);
    Collector(const Collector&) = delete;
    Collector& operator=(const Collector&) = delete;
    ~Collector();

    /// Opens what the store has; then looks for VMs and services and follows them by itself.
    Task<Result<Done>> start();
    /// Looks into vm_root and service_log_dir now.
    Task<> scan();
    /// A VM was heard of. Its log must be inside vm_root.
    Task<Result<Done>> learn(SourceInfo info);
    Task<> forget_vm(std::string vm_id);

    Result<std::shared_ptr<Source>> find(std::string_view wanted) const;
    const std::map<std::string, std::shared_ptr<Source>>& sources() const { return sources_; }

  private:
    Task<> follow(std::shared_ptr<Source> source);
    Task<> chores();
    Task<> bound_total();
    Task<Result<Done>> add(SourceInfo info, bool write);

    Loop& loop_;
    const Config& config_;
    std::function<void(const SourceInfo&, const Loss&)> on_loss_;
    std::map<std::string, std::shared_ptr<Source>> sources_; ///< by directory name
    AsyncMutex adding_;
    Scope scope_; ///< last: its tasks use the rest
};

std::uint64_t unix_ms();

} // namespace dstack::logs
