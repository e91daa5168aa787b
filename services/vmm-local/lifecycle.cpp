#include "services/vmm-local/vmm.hpp"
#include "shared/attestation/simulated.hpp"
#include "shared/crypto/bytes.hpp"
#include "shared/log/log.hpp"
#include "shared/state/files.hpp"
#include <algorithm>
#include <csignal>
#include <sys/stat.h>
#include <unistd.h>

namespace dstack::vmm
{

namespace
{
Error being_removed() { return Error{Errc::failed_precondition, "VM is being removed", {}, {}}; }
Error not_found() { return Error{Errc::not_found, "VM not found", {}, {}}; }
} // namespace

Task<Result<Done>> Vmm::save(VmPtr vm)
{
    auto guard = co_await vm->saving.lock();
    auto write = [dir = vm->dir, state = vm->state] { return write_state(dir, state); };
    auto written = co_await offload(loop_, write);
    if (!written) { log::error("vm state not written", {{"vm", vm->manifest.id}, {"error", written.error().message}}); }
    co_return written;
}

// --- start -----------------------------------------------------------------------------------------------------------

Task<Result<Done>> Vmm::start(std::string id)
{
    auto operation = do_start(std::move(id));
    auto outliving = outlive_caller(std::move(operation));
    co_return co_await outliving;
}

Task<Result<Done>> Vmm::do_start(std::string id)
{
    auto vm = find(id);
    if (!vm) { co_return not_found(); }
    auto guard = co_await vm->lock.lock();
    vm->restarts = 0;
    auto started = co_await start_locked(vm, false);
    co_return started;
}

Task<Result<Done>> Vmm::start_locked(VmPtr vm, bool automatic)
{
    if (vm->removing) { co_return being_removed(); }
    if (vm->running())
    {
        vm->state.started = true;
        vm->state.stop_asked.clear();
        vm->state.boot_error.clear();
        vm->state.shutdown_progress.clear();
        auto saved = co_await save(vm);
        co_return saved;
    }
    co_await vm->ended.wait(); // an exit that is just being recorded
    auto image = co_await load_verified(vm->manifest.image);
    if (!image) { co_return std::move(image).error(); }
    auto choice = co_await probe_.choose(image->kernel);
    if (!choice) { co_return std::move(choice).error(); }
    vm->image_version = image->version;
    vm->starting = true;
    auto launched = co_await launch(vm, *image, *choice);
    if (launched)
    {
        auto answering = co_await await_monitor(vm);
        launched = std::move(answering);
    }
    vm->starting = false;
    if (launched)
    {
        emit(*vm, schema::VmStarted{vm->manifest.id, vm->manifest.name, static_cast<std::uint64_t>(vm->watch->who().pid),
                                       vm->state.accel, vm->dir + "/serial.log"});
        co_return Done{};
    }
    if (!automatic && !vm->removing) // who asked for it has been told
    {
        vm->state.started = false;
        auto saved = co_await save(vm);
        if (!saved) { log::warn("a failed start is still wanted on disk", {{"vm", vm->manifest.id}}); }
    }
    co_return launched;
}

namespace
{
Result<std::string> simulator_config(const std::string& seed, const Vm& vm, const Image& image)
{
    attestation::Claims claims;
    claims.vm_id = vm.manifest.id;
    claims.app_id = vm.manifest.app_id;
    claims.compose_hash = vm.compose_hash;
    claims.instance_id = vm.instance_id;
    claims.os_image_hash = image.os_image_hash;
    claims.vcpu = std::max<std::uint32_t>(vm.manifest.vcpu, 1);
    claims.memory_mib = vm.manifest.memory;
    claims.issued_at = static_cast<std::int64_t>(now_ms() / 1000);
    crypto::Bytes32 key{};
    std::copy_n(seed.begin(), std::min(seed.size(), key.size()), key.begin());
    auto text = attestation::make_simulator_config(key, claims);
    crypto::wipe(key);
    return text;
}

bool is_file(const std::string& path)
{
    struct stat info{};
    return !path.empty() && stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

/// All that is on disk before QEMU runs; the state is written last, as what was meant.
Result<Done> prepare_start(const std::string& dir, const ShareInput& share, std::uint64_t serial_max, const std::string& now,
                           const State& state)
{
    auto done = prepare_share(dir, share);
    if (done) { done = keep_serial_log(dir, serial_max, true, now); }
    for (const char* name : {"/stdout.log", "/stderr.log", "/qmp.sock"}) { unlink((dir + name).c_str()); }
    if (done) { done = write_state(dir, state); }
    return done;
}
} // namespace

Task<Result<Done>> Vmm::make_data_disk(VmPtr vm)
{
    const std::string path = vm->dir + "/hda.img";
    if (vm->manifest.disk_size == 0 || is_file(path)) { co_return Done{}; }
    const std::string fresh = path + ".new";
    process::Spec spec;
    spec.argv = {"qemu-img", "create", "-q", "-f", "qcow2", fresh, std::to_string(vm->manifest.disk_size) + "G"};
    auto made = co_await process::output_of(loop_, spec, milliseconds{30'000});
    if (!made) { co_return std::move(made).error(); }
    if (std::rename(fresh.c_str(), path.c_str()) != 0) { co_return errno_error("rename " + fresh, errno); }
    co_return Done{};
}

Task<Result<Done>> Vmm::launch(VmPtr vm, const Image& image, AccelProbe::Choice choice)
{
    auto listening = open_host_api(*vm);
    if (!listening) { co_return listening; }
    const std::string host_api = "http://10.0.2.2:" + std::to_string(vm->state.host_api_port) + "/" + vm->state.host_api_token + "/api";
    ShareInput share;
    share.sys_config = sys_config(vm->manifest, config_.node, host_api, vm_config(vm->manifest, image, probe_.qemu_version()));
    if (config_.tee_simulator)
    {
        auto simulator = simulator_config(host_seed_, *vm, image);
        if (!simulator) { co_return std::move(simulator).error().within("simulated tee"); }
        share.tee_simulator = std::move(*simulator);
    }
    auto disk = co_await make_data_disk(vm);
    if (!disk) { co_return disk; }

    State& state = vm->state;
    state.started = true;
    state.boot_progress = "booting";
    state.boot_error.clear();
    state.shutdown_progress.clear();
    state.stop_asked.clear();
    state.exit_reason.clear();
    state.started_at_ms = now_ms();
    state.accel = to_string(choice.accel);
    state.ready = false;
    auto prepare = [dir = vm->dir, share = std::move(share), max = config_.serial_max_bytes, now = now_text(), state]
    { return prepare_start(dir, share, max, now, state); };
    auto prepared = co_await offload(loop_, prepare);
    if (!prepared) { co_return prepared; }
    if (vm->removing) { co_return being_removed(); }

    QemuPlan plan;
    plan.qemu = config_.qemu;
    plan.accel = choice.accel;
    plan.tcg_tb_size_mb = config_.tcg_tb_size_mb;
    plan.vm_id = vm->manifest.id;
    plan.work_dir = vm->dir;
    plan.vcpu = vm->manifest.vcpu;
    plan.memory = vm->manifest.memory;
    plan.kernel = image.kernel;
    plan.initrd = image.initrd;
    plan.cmdline = image.cmdline.value_or("");
    plan.bios = image.bios;
    plan.rootfs = image.rootfs;
    plan.data_disk = vm->manifest.disk_size > 0;
    if (is_file(config_.store_image)) { plan.store_image = config_.store_image; }
    plan.ports = vm->manifest.port_map;
    if (access("/dev/vhost-vsock", R_OK | W_OK) == 0) { plan.cid = vm->manifest.cid; }
    process::Spec spec;
    spec.argv = qemu_arguments(plan);
    spec.cwd = vm->dir;
    spec.out = {process::Sink::Kind::file, vm->dir + "/stdout.log"};
    spec.err = {process::Sink::Kind::file, vm->dir + "/stderr.log"};
    auto spawn = [dir = vm->dir, spec = std::move(spec)]
    { return process::spawn_detached(spec, [&dir](const process::Identity& who) { return write_pid(dir, who); }); };
    auto who = co_await offload(loop_, spawn);
    if (!who) { co_return std::move(who).error(); }
    log::info("qemu started", {{"vm", vm->manifest.id}, {"pid", who->pid}, {"accel", to_string(choice.accel)}, {"why", choice.why}});

    ++vm->run;
    auto watch = process::PidWatch::open(loop_, *who);
    if (!watch)
    {
        std::string unknown;
        co_await record_exit(vm, std::move(unknown));
        std::string reason = vm->state.exit_reason;
        co_return Error{Errc::failed_precondition, std::move(reason), {}, {}};
    }
    vm->watch.emplace(std::move(*watch));
    vm->ended.reset();
    background_.spawn(follow_process(vm));
    co_return Done{};
}

/// Until the monitor answers: QEMU has opened its disks and ports by then, so what it refuses is known.
Task<Result<Done>> Vmm::await_monitor(VmPtr vm)
{
    constexpr milliseconds step{250};
    const auto deadline = loop_.now() + config_.start_timeout;
    while (vm->running() && !vm->removing && loop_.now() < deadline)
    {
        auto qmp = co_await Qmp::connect(loop_, vm->dir, step);
        if (qmp)
        {
            vm->qmp = std::move(*qmp);
            co_return Done{};
        }
    }
    if (vm->removing) { co_return being_removed(); }
    const bool late = vm->running();
    if (late) { (void)vm->watch->kill(SIGKILL); }
    auto ended = co_await await_end(vm, milliseconds{10'000});
    if (!ended) { co_return ended; }
    if (late)
    {
        std::string text = "qemu did not answer within " + std::to_string(config_.start_timeout.count()) + " ms";
        co_return Error{Errc::deadline_exceeded, std::move(text), {}, {}};
    }
    std::string reason = vm->state.exit_reason;
    co_return Error{Errc::failed_precondition, std::move(reason), {}, {}};
}

Task<> Vmm::adopt_monitor(VmPtr vm)
{
    auto qmp = co_await Qmp::connect(loop_, vm->dir, config_.start_timeout);
    if (!qmp)
    {
        log::warn("adopted guest's monitor does not answer", {{"vm", vm->manifest.id}, {"error", qmp.error().message}});
        co_return;
    }
    vm->qmp = std::move(*qmp);
    auto monitor = vm->qmp;
    auto status = co_await monitor->execute("query-status", milliseconds{5'000});
    log::info("guest adopted", {{"vm", vm->manifest.id}, {"status", status ? *status : status.error().message}});
}

// --- the end of a process ----------------------------------------------------------------------------------------------

Task<Result<Done>> Vmm::await_end(VmPtr vm, milliseconds limit)
{
    const auto deadline = loop_.now() + limit;
    while (!vm->ended.is_set() && loop_.now() < deadline) { co_await sleep_for(loop_, milliseconds{2}); }
    if (vm->ended.is_set()) { co_return Done{}; }
    co_return Error{Errc::deadline_exceeded, "qemu did not end within " + std::to_string(limit.count()) + " ms", {}, {}};
}

namespace
{
Task<Result<Done>> closing(std::shared_ptr<Qmp> qmp)
{
    co_await qmp->until_closed();
    co_return Done{};
}
} // namespace

Task<> Vmm::follow_process(VmPtr vm)
{
    co_await vm->watch->exited();
    std::string reason;
    if (vm->qmp)
    {
        auto qmp = vm->qmp;
        auto closed = closing(qmp); // its last event is read before the end of the connection
        auto bounded = with_timeout(loop_, milliseconds{1'000}, "qemu's monitor", std::move(closed));
        auto done = co_await bounded;
        if (!done) { log::warn("qemu's monitor outlives its process", {{"vm", vm->manifest.id}}); }
        reason = qmp->shutdown_reason();
    }
    co_await record_exit(vm, std::move(reason));
}

namespace
{
struct LastWords
{
    std::string panic;
    std::vector<std::string> lines;
    std::string stderr_text;
};

LastWords read_last_words(const std::string& dir)
{
    const std::string serial = read_tail(dir + "/serial.log", 256 * 1024);
    const auto boot = last_boot(serial);
    return {panic_of(boot), last_lines(boot, 20), explain_qemu(read_tail(dir + "/stderr.log", 16 * 1024))};
}
} // namespace

Task<> Vmm::record_exit(VmPtr vm, std::string qmp_reason)
{
    auto read = [dir = vm->dir] { return read_last_words(dir); };
    auto words = co_await offload(loop_, read);
    State& state = vm->state;
    ExitFacts facts;
    facts.stop_asked = vm->removing ? "stop" : state.stop_asked;
    facts.powering_off = state.shutdown_progress == "powering off";
    facts.boot_error = state.boot_error;
    facts.qmp_reason = std::move(qmp_reason);
    facts.panic = words.panic;
    facts.stderr_tail = words.stderr_text;
    const ExitVerdict verdict = judge_exit(facts);

    const std::uint64_t now = now_ms();
    if (now - state.started_at_ms >= config_.restart.reset_window_ms) { vm->restarts = 0; }
    state.exited_at_ms = now;
    state.exit_reason = verdict.expected ? "asked to: " + verdict.how : verdict.reason;
    state.stop_asked.clear();
    state.ready = false;
    if (verdict.expected) { state.started = false; }
    std::optional<std::uint64_t> delay;
    if (!verdict.expected && verdict.may_restart && state.started && !vm->starting)
    {
        delay = restart_delay(config_.restart, vm->restarts);
    }
    vm->watch.reset();
    vm->qmp.reset();
    if (!vm->removing)
    {
        auto saved = co_await save(vm);
        if (saved) { forget_pid(vm->dir); } // kept otherwise: the next VMM records this exit again
    }
    if (verdict.expected) { emit(*vm, schema::VmStopped{vm->manifest.id, vm->manifest.name, verdict.how}); }
    else
    {
        emit(*vm, schema::VmExited{vm->manifest.id, vm->manifest.name, verdict.reason, words.lines, delay.has_value()});
    }
    vm->ended.set();
    if (delay) { background_.spawn(restart_later(vm, *delay, vm->run)); }
    else if (!verdict.expected && verdict.may_restart && state.started && !vm->starting && config_.restart.enabled)
    {
        const std::string text = "Automatic restart stopped after " + std::to_string(vm->restarts) + " failed attempts";
        state.events.push_back({"vmm.auto_restart.exhausted", text, now});
        if (state.events.size() > max_guest_events) { state.events.erase(state.events.begin()); }
        log::error("automatic restart given up", {{"vm", vm->manifest.id}, {"attempts", vm->restarts}});
        auto saved = co_await save(vm);
        if (!saved) { co_return; }
    }
}

/// After a start of the VMM: a VM that should run and does not. The budget begins anew, as upstream's does.
void Vmm::schedule_restart(const VmPtr& vm)
{
    const State& state = vm->state;
    if (!state.started || !state.boot_error.empty()) { return; }
    const bool never_ran = state.started_at_ms == 0; // the creation was interrupted before QEMU ran
    const auto delay = restart_delay(config_.restart, 0);
    if (never_ran || delay) { background_.spawn(restart_later(vm, never_ran ? 0 : *delay, vm->run)); }
}

Task<> Vmm::restart_later(VmPtr vm, std::uint64_t delay_ms, std::uint64_t run)
{
    const milliseconds delay(static_cast<std::int64_t>(delay_ms));
    co_await sleep_for(loop_, delay);
    auto guard = co_await vm->lock.lock();
    if (vm->run != run || !vm->state.started || vm->running() || vm->removing) { co_return; }
    ++vm->restarts;
    log::info("vm restarted automatically", {{"vm", vm->manifest.id}, {"attempt", vm->restarts}});
    auto started = co_await start_locked(vm, true);
    if (started || vm->removing) { co_return; }
    log::error("automatic restart failed", {{"vm", vm->manifest.id}, {"error", started.error().message}});
    const auto next = restart_delay(config_.restart, vm->restarts);
    if (next) { background_.spawn(restart_later(vm, *next, vm->run)); }
}

// --- stop --------------------------------------------------------------------------------------------------------------

Task<Result<Done>> Vmm::stop(std::string id)
{
    auto operation = do_stop(std::move(id));
    auto outliving = outlive_caller(std::move(operation));
    co_return co_await outliving;
}

Task<Result<Done>> Vmm::do_stop(std::string id)
{
    auto vm = find(id);
    if (!vm) { co_return not_found(); }
    if (vm->removing) { co_return Done{}; }
    auto guard = co_await vm->lock.lock();
    vm->restarts = 0;
    vm->state.started = false;
    const bool running = vm->running();
    if (running) { vm->state.stop_asked = "stop"; }
    auto saved = co_await save(vm);
    if (!saved) { co_return std::move(saved).error().within("Failed to set started"); }
    if (running)
    {
        emit(*vm, schema::VmStopping{vm->manifest.id, vm->manifest.name, "stop"});
        if (vm->watch)
        {
            auto killed = vm->watch->kill(SIGKILL);
            if (!killed) { co_return killed; }
        }
    }
    auto ended = co_await await_end(vm, milliseconds{10'000});
    co_return ended;
}

Task<Result<Done>> Vmm::shutdown(std::string id)
{
    auto operation = do_shutdown(std::move(id));
    auto outliving = outlive_caller(std::move(operation));
    co_return co_await outliving;
}

Task<Result<Done>> Vmm::do_shutdown(std::string id)
{
    auto vm = find(id);
    if (!vm) { co_return Error{Errc::not_found, "vm not found", {}, {}}; }
    auto guard = co_await vm->lock.lock();
    if (!vm->running()) { co_return Error{Errc::failed_precondition, "VM is not running", {}, {}}; }
    auto qmp = vm->qmp;
    if (!qmp || qmp->closed()) { co_return Error{Errc::unavailable, "the VM's monitor does not answer", "stop the VM instead", {}}; }
    const bool first = vm->state.stop_asked.empty();
    vm->state.stop_asked = "shutdown";
    auto saved = co_await save(vm);
    if (!saved) { co_return saved; }
    if (first) { emit(*vm, schema::VmStopping{vm->manifest.id, vm->manifest.name, "shutdown"}); }
    auto asked = co_await qmp->execute("system_powerdown", milliseconds{5'000});
    if (!asked && vm->running()) { co_return std::move(asked).error(); }
    if (first) { background_.spawn(watch_shutdown(vm, vm->run)); }
    co_return Done{};
}

Task<> Vmm::watch_shutdown(VmPtr vm, std::uint64_t run)
{
    co_await sleep_for(loop_, config_.shutdown_timeout);
    if (vm->run != run || !vm->running() || vm->state.stop_asked != "shutdown") { co_return; }
    const std::string text = "the guest did not power off within " + std::to_string(config_.shutdown_timeout.count()) + " ms";
    vm->state.shutdown_progress = text;
    vm->state.events.push_back({"vmm.shutdown_timeout", text, now_ms()});
    if (vm->state.events.size() > max_guest_events) { vm->state.events.erase(vm->state.events.begin()); }
    log::warn("guest ignores the power-down", {{"vm", vm->manifest.id}});
    auto saved = co_await save(vm);
    if (!saved) { co_return; }
}

Task<> Vmm::rotate_logs()
{
    constexpr milliseconds interval{5'000};
    for (;;)
    {
        co_await sleep_for(loop_, interval);
        std::vector<VmPtr> running;
        for (const auto& [id, vm] : vms_)
        {
            if (vm->running()) { running.push_back(vm); }
        }
        for (const auto& vm : running) { co_await look_at_serial(vm); }
    }
}

/// Keeps it short, and ends a guest that hangs in a kernel panic: only its log tells that it does not run any more.
Task<> Vmm::look_at_serial(VmPtr vm)
{
    const std::uint64_t run = vm->run;
    auto look = [dir = vm->dir, max = config_.serial_max_bytes, now = now_text()]
    {
        const bool hangs = hangs_in_panic(last_boot(read_tail(dir + "/serial.log", 4096)));
        return std::make_pair(hangs, keep_serial_log(dir, max, false, now));
    };
    auto looked = co_await offload(loop_, look);
    if (!looked.second) { log::warn("serial log not rotated", {{"file", vm->dir}, {"error", looked.second.error().message}}); }
    if (!looked.first || vm->run != run || !vm->running()) { co_return; }
    log::warn("guest hangs in a kernel panic", {{"vm", vm->manifest.id}});
    auto killed = vm->watch->kill(SIGKILL);
    if (!killed) { log::error("guest not ended", {{"vm", vm->manifest.id}, {"error", killed.error().message}}); }
}

} // namespace dstack::vmm
