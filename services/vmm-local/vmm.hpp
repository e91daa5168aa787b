#pragma once
#include "bus/client/publisher.hpp"
#include "bus/schema/vm.hpp"
#include "services/vmm-local/accel_probe.hpp"
#include "services/vmm-local/answers.hpp"
#include "services/vmm-local/qmp.hpp"
#include "services/vmm-local/store.hpp"
#include "shared/http/server.hpp"
#include "shared/process/process.hpp"
#include <map>

namespace dstack::vmm
{

inline constexpr milliseconds keep_limit{5'000}; ///< an answer waits no longer for its events to be durable

/// One VM as this process knows it. What must survive the process is in `manifest` and `state`.
struct Vm
{
    explicit Vm(Loop& loop) : lock(loop), saving(loop), ended(loop) { ended.set(); }
    Manifest manifest;
    State state;
    std::string dir;
    std::string compose_hash;
    std::string instance_id;
    std::string image_version;
    std::string trace;     ///< W3C trace context of who started or stopped it last, until that has come to its end
    bool creating = false; ///< counts for port conflicts, is not shown yet
    bool removing = false; ///< everything else gives way

    AsyncMutex lock;   ///< one start, stop or removal at a time
    AsyncMutex saving; ///< vm-state.json is written in order
    std::optional<process::PidWatch> watch; ///< from the start of QEMU until its end is recorded
    Event ended;                            ///< set while there is no QEMU
    std::shared_ptr<Qmp> qmp;
    std::unique_ptr<http::Server> host_api;

    std::uint64_t run = 0;          ///< counts starts
    bool starting = false;          ///< an exit now is a failed start
    std::uint32_t restarts = 0;     ///< automatic ones since the budget was last reset
    std::uint64_t notify_window_ms = 0;
    std::uint32_t notify_count = 0; ///< in that window

    bool running() const { return watch && !watch->has_exited(); }
};
using VmPtr = std::shared_ptr<Vm>;

/// The embedded VMM: work directories, QEMU processes, the guests' host API. Guests outlive it.
class Vmm
{
  public:
    Vmm(Loop& loop, const Config& config, bus::Publisher& events);
    Vmm(const Vmm&) = delete;
    Vmm& operator=(const Vmm&) = delete;
    ~Vmm();

    /// Recovers from a crash, adopts the guests that run, notices those that ended meanwhile.
    Task<Result<Done>> open();
    /// Lets operations in flight end, up to `limit`. Guests go on.
    Task<> close(milliseconds limit);

    /// The trace context of the request that comes next for this VM; what happens to the VM is said with it.
    void note_trace(std::string_view id, std::string_view trace);
    // The operations of the prpc API. They go on when the caller goes away.
    Task<Result<std::string>> create(VmConfiguration request);
    Task<Result<Done>> start(std::string id);
    Task<Result<Done>> stop(std::string id);
    Task<Result<Done>> shutdown(std::string id);
    Task<Result<Done>> remove(std::string id);
    struct Reloaded
    {
        std::uint32_t loaded = 0;
        std::uint32_t updated = 0;
        std::uint32_t removed = 0;
    };
    Task<Result<Reloaded>> reload();
    Task<Result<std::vector<Image>>> images();
    struct Listing
    {
        std::vector<VmView> views;
        std::size_t total = 0;
    };
    Task<Listing> status(StatusRequest request);
    Task<std::optional<VmView>> info(std::string id);
    /// The directory of a VM whose logs may be read.
    std::optional<std::string> dir_of(std::string_view id) const;
    const Config& config() const { return config_; }
    Loop& loop() { return loop_; }
    AccelProbe& probe() { return probe_; }

  private:
    template <class T>
    struct Outcome
    {
        explicit Outcome(Loop& loop) : done(loop) {}
        Event done;
        std::optional<Result<T>> value;
    };
    template <class T>
    static Task<> run_operation(Task<Result<T>> operation, std::shared_ptr<Outcome<T>> outcome)
    {
        auto value = co_await operation;
        outcome->value.emplace(std::move(value));
        outcome->done.set();
    }
    /// The operation belongs to this object, not to the HTTP request that waits for it.
    template <class T>
    Task<Result<T>> outlive_caller(Task<Result<T>> operation)
    {
        auto outcome = std::make_shared<Outcome<T>>(loop_);
        operations_.spawn(run_operation(std::move(operation), outcome));
        co_await outcome->done.wait();
        co_await events_.kept(keep_limit); // what was done is told, also when this process dies right after its answer
        co_return *outcome->value;
    }

    template <schema::EventStruct E>
    void emit(Vm& vm, E event)
    {
        events_.emit(std::move(event), vm.trace.empty() ? std::string{} : bus::child_traceparent(vm.trace));
        using namespace schema;
        constexpr bool ends = std::is_same_v<E, VmReady> || std::is_same_v<E, VmStopped> || std::is_same_v<E, VmExited> || std::is_same_v<E, VmRemoved>;
        if (ends && !vm.removing) { vm.trace.clear(); } // what the guest does from here on is its own
    }

    // vmm.cpp
    Task<Result<std::string>> do_create(VmConfiguration request);
    Task<Result<Done>> undo_create(VmPtr vm);
    Task<Result<Done>> do_remove(std::string id);
    Task<> finish_removal(VmPtr vm);
    void take_over(FoundVm found);
    Task<Result<Image>> load_verified(std::string name);
    Task<VmView> view_of(VmPtr vm, bool with_configuration);
    VmPtr find(std::string_view id) const;

    // lifecycle.cpp
    Task<Result<Done>> do_start(std::string id);
    Task<Result<Done>> do_stop(std::string id);
    Task<Result<Done>> do_shutdown(std::string id);
    Task<Result<Done>> start_locked(VmPtr vm, bool automatic);
    Task<Result<Done>> launch(VmPtr vm, const Image& image, AccelProbe::Choice choice);
    Task<Result<Done>> make_data_disk(VmPtr vm);
    Task<Result<Done>> await_monitor(VmPtr vm);
    Task<> adopt_monitor(VmPtr vm);
    Task<> follow_process(VmPtr vm);
    Task<> record_exit(VmPtr vm, std::string qmp_reason);
    Task<Result<Done>> await_end(VmPtr vm, milliseconds limit);
    Task<> watch_shutdown(VmPtr vm, std::uint64_t run);
    Task<> restart_later(VmPtr vm, std::uint64_t delay_ms, std::uint64_t run);
    void schedule_restart(const VmPtr& vm);
    Task<> rotate_logs();
    Task<> look_at_serial(VmPtr vm);
    Task<Result<Done>> save(VmPtr vm);

    // host_api.cpp
    Result<Done> open_host_api(Vm& vm);
    Task<> reopen_host_api(VmPtr vm);
    Task<http::Response> answer_guest(Vm* vm, http::Request request);
    Task<Result<Done>> notify(VmPtr vm, std::string event, std::string payload);
    void refuse_notify(Vm& vm, std::string reason);

    Loop& loop_;
    const Config& config_;
    bus::Publisher& events_;
    AccelProbe probe_;
    std::string host_seed_;
    std::shared_ptr<ImageDigests> digests_ = std::make_shared<ImageDigests>();
    AsyncMutex image_lock_;
    std::map<std::string, VmPtr, std::less<>> vms_;
    Scope operations_; ///< end before the process does
    Scope background_; ///< watchers and timers: destroyed at the stop
};

std::uint64_t now_ms();
/// RFC 3339 UTC, seconds.
std::string now_text();

} // namespace dstack::vmm
