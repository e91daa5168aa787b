#pragma once
#include "services/dstackup/notify_socket.hpp"
#include "services/dstackup/restart.hpp"
#include "services/dstackup/settings.hpp"
#include "services/dstackup/status.hpp"
#include "shared/process/process.hpp"
#include "shared/runtime/daemon.hpp"
#include <deque>

namespace dstack::up
{

/// Starts the roster of one prefix, restarts what dies within its budget, and stops everything it started and nothing
/// else. Crash-only: what an earlier supervisor started runs on without it and is adopted by the next one.
/// SIGHUP tries again what was given up.
class Supervisor
{
  public:
    Supervisor(Daemon& daemon, Settings settings);
    Task<Result<Done>> run();

  private:
    struct Slot
    {
        explicit Slot(Loop& loop, const Service& s) : service(s), retry(loop), changed(loop) {}
        const Service& service;
        ServiceStatus status{};
        RestartBudget budget{};
        std::string program{};
        std::optional<process::Child> child{};    ///< started by us
        std::optional<process::PidWatch> watch{}; ///< adopted
        Event retry;                              ///< the operator or the stop wants it to go on now
        Event changed;                            ///< set when it is ready, failed or stopped
        bool running() const { return child || watch; }
    };

    Result<Done> prepare();
    void adopt_running();
    Task<> keep(Slot& slot);
    Result<Done> start(Slot& slot);
    Task<process::Exit> ended(Slot& slot);
    Task<bool> after_end(Slot& slot, process::Exit exit, bool exit_known);
    Task<> give_up(Slot& slot, std::string reason);
    Task<> settled(Slot& slot);
    Task<> start_all(Scope& scope);
    Task<> announce();
    Task<> stop_all();
    Task<> stop(Slot& slot);
    Task<> retry_on_reload();
    Task<> bound_logs();
    void noticed(pid_t sender, const Notice& notice);
    void enter(Slot& slot, Phase phase);
    void write_status();

    Daemon& daemon_;
    Loop& loop_;
    Settings settings_;
    Layout layout_;
    std::deque<Slot> slots_;
    MeshStatus earlier_{};
    process::Identity self_{};
    std::unique_ptr<NotifySocket> notify_;
    std::string written_;
    Event stopping_;
    Event progress_; ///< some service entered another phase
};

/// Runs a Supervisor to its end.
Task<Result<Done>> supervise(Daemon& daemon, Settings settings);

/// Keeps at most `max_bytes` in `path` and as much in `path`.1: copies, then truncates, since the writers hold it open
/// for appending. A line that is written in between is lost; that takes microseconds every few MiB.
Result<bool> bound_log(const std::string& path, std::uint64_t max_bytes);

} // namespace dstack::up
