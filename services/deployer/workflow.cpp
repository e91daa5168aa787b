#include "services/deployer/workflow.hpp"
#include "services/deployer/vmm_wire.hpp"
#include <algorithm>
#include <array>

namespace dstack::deployer
{

namespace
{
constexpr std::array<std::string_view, 7> create_steps{"image", "lease", "allow", "create_vm", "bind", "boot", "probe"};
constexpr std::array<std::string_view, 3> start_steps{"start_vm", "boot", "probe"};
const std::vector<Fact> no_facts;
constexpr milliseconds poll_pause{500};
constexpr int undo_tries = 4;
constexpr milliseconds gone_limit{60'000};     ///< for a VM to disappear after RemoveVm
constexpr milliseconds shutdown_limit{30'000}; ///< for a guest to power down before it is killed

std::uint64_t elapsed(Ports& ports, std::uint64_t since)
{
    const std::uint64_t now = ports.now_ms();
    return now > since ? now - since : 0;
}

schema::DeployStep step_fact(const Work& work, std::string_view step, std::string_view state, std::string detail,
                             std::uint64_t took_ms)
{
    return {work.operation.id, work.operation.name, std::string{step}, std::string{state}, std::move(detail), took_ms};
}

Error preempted_error()
{
    return Error{Errc::aborted, "pre-empted: the app is being removed", {}, {}};
}

void note_failure(Operation& operation, std::string_view step, const Error& error)
{
    operation.failed_step = step;
    operation.code = to_string(error.code);
    operation.reason = error.message;
    operation.hint = error.hint;
}

// Steps of a create. Each says what it gave; each may run again after a crash at any place inside it.

Task<Result<std::string>> choose_image(Ports& ports, Work& work)
{
    auto images = co_await ports.images();
    if (!images) { co_return std::move(images).error(); }
    if (work.app.wanted_image.empty())
    {
        const ImageInfo* newest = newest_image(*images);
        if (newest == nullptr)
        {
            co_return Error{Errc::failed_precondition, "there is no guest OS image in the store",
                            "run `dstackup image import FILE` or build one with deploy/guest-image/build", {}};
        }
        work.app.image = newest->name;
        co_return work.app.image;
    }
    std::string known;
    for (const ImageInfo& image : *images)
    {
        if (image.name == work.app.wanted_image)
        {
            work.app.image = image.name;
            co_return work.app.image;
        }
        known += (known.empty() ? "" : ", ") + image.name;
    }
    Error error{Errc::not_found, "image '" + work.app.wanted_image + "' is not in the store", {}, {}};
    error.hint = known.empty() ? "the store is empty" : "the store has: " + known;
    co_return error;
}

std::vector<schema::LeaseWish> wishes_of(const AppFacts& app)
{
    std::vector<schema::LeaseWish> wishes;
    schema::LeaseWish cid;
    cid.kind = "cid";
    cid.purpose = "vsock address of " + app.name;
    wishes.push_back(std::move(cid));
    for (const PortMapping& port : app.wanted_ports)
    {
        schema::LeaseWish wish;
        wish.kind = "port";
        wish.protocol = port.protocol;
        wish.address = port.host_address;
        wish.value = port.host_port;
        wish.privileged = port.privileged;
        wish.purpose = std::to_string(port.vm_port) + "/" + port.protocol + " of the guest";
        wishes.push_back(std::move(wish));
    }
    return wishes;
}

/// One lease per wish, in order: first the CID, then the ports.
Result<std::string> take_leases(AppFacts& app, const std::vector<schema::Lease>& leases)
{
    if (leases.size() != app.wanted_ports.size() + 1)
    {
        return Error{Errc::internal, "allocator: " + std::to_string(leases.size()) + " leases for " +
                                         std::to_string(app.wanted_ports.size() + 1) + " wishes", {}, {}};
    }
    app.cid = leases.front().value;
    app.ports = app.wanted_ports;
    std::string detail = "cid " + std::to_string(app.cid);
    for (std::size_t i = 0; i < app.ports.size(); ++i)
    {
        app.ports[i].host_port = leases[i + 1].value;
        detail += ", " + to_text(app.ports[i]);
    }
    return detail;
}

Task<Result<std::string>> take_lease(Ports& ports, Work& work)
{
    if (!work.app.lease_begun)
    {
        work.app.lease_begun = true;
        auto saved = co_await ports.save(work, no_facts);
        if (!saved) { co_return std::move(saved).error(); }
    }
    auto wishes = wishes_of(work.app);
    auto leases = co_await ports.reserve(work.app.name, work.operation.id, wishes);
    if (!leases) { co_return std::move(leases).error(); }
    co_return take_leases(work.app, *leases);
}

Task<Result<std::string>> allow_hash(Ports& ports, Work& work)
{
    if (!work.app.allow) { co_return std::string{"not asked for: the policy must allow it already"}; }
    const bool again = work.app.allow_begun;
    if (!again)
    {
        work.app.allow_begun = true;
        auto saved = co_await ports.save(work, no_facts);
        if (!saved) { co_return std::move(saved).error(); }
    }
    const std::string reason = "deploy " + work.app.name;
    const std::string key = work.operation.id + ":allow";
    auto changed = co_await ports.allow(work.app.app_id, work.app.compose_hash, reason, key);
    if (!changed) { co_return std::move(changed).error(); }
    // What the operator had allowed before stays allowed after an undo. When the answer got lost in a crash, it was us.
    work.app.allow_begun = *changed || again;
    co_return *changed ? "compose hash " + work.app.compose_hash : std::string{"allowed already"};
}

/// A VM that CreateVm made although its answer never came.
Task<Result<std::string>> find_vm(Ports& ports, Work& work)
{
    auto vms = co_await ports.vms();
    if (!vms) { co_return std::move(vms).error(); }
    for (const VmSight& vm : *vms)
    {
        const auto& foreign = work.app.foreign_vms;
        const bool ours = vm.name == work.app.name && vm.app_id == work.app.app_id &&
                          std::find(foreign.begin(), foreign.end(), vm.id) == foreign.end();
        if (ours) { co_return vm.id; }
    }
    co_return std::string{};
}

Task<Result<Done>> remember_foreign_vms(Ports& ports, Work& work)
{
    auto vms = co_await ports.vms();
    if (!vms) { co_return std::move(vms).error(); }
    work.app.foreign_vms.clear();
    for (const VmSight& vm : *vms)
    {
        if (vm.name == work.app.name && vm.app_id == work.app.app_id) { work.app.foreign_vms.push_back(vm.id); }
    }
    work.app.create_begun = true;
    co_return co_await ports.save(work, no_facts);
}

Task<Result<std::string>> make_vm(Ports& ports, Work& work)
{
    if (work.app.create_begun)
    {
        auto found = co_await find_vm(ports, work);
        if (!found) { co_return std::move(found).error(); }
        if (!found->empty())
        {
            work.app.vm_id = *found;
            co_return "vm " + *found + " (found again)";
        }
    }
    else
    {
        auto noted = co_await remember_foreign_vms(ports, work);
        if (!noted) { co_return std::move(noted).error(); }
    }
    auto id = co_await ports.create_vm(work.app);
    if (!id)
    {
        Error error = std::move(id).error();
        if (error.details == not_sent)
        {
            work.app.create_begun = false;
            co_return error;
        }
        const bool unsure = error.code == Errc::unavailable || error.code == Errc::deadline_exceeded;
        if (!unsure) { co_return error; }
        auto found = co_await find_vm(ports, work);
        if (!found || found->empty()) { co_return error; }
        work.app.vm_id = *found;
        co_return "vm " + *found + " (its answer was lost)";
    }
    work.app.vm_id = *id;
    co_return "vm " + *id;
}

Task<Result<std::string>> bind_leases(Ports& ports, Work& work)
{
    auto bound = co_await ports.bind(work.app.name);
    if (!bound) { co_return std::move(bound).error(); }
    co_return std::string{};
}

// Waiting for the guest: shared by create and start.

Task<Result<std::string>> boot_failed(Ports& ports, Work& work, Error error)
{
    auto decision = co_await ports.latest_decision(work.app.app_id);
    std::optional<schema::Decision> known;
    if (decision) { known = std::move(*decision); }
    Denial denial = explain_boot_error(std::move(error), known, work.app, work.operation.begun_ms);
    work.operation.denied = denial.denied;
    co_return std::move(denial.error);
}

/// A guest's end is told twice, by the VMM's answer and by its event, which has the reason and may come second.
Task<Result<std::string>> guest_failed(Ports& ports, Work& work, Result<std::optional<VmSight>> vm)
{
    const bool exited = *vm && (*vm)->status == "exited" && (*vm)->boot_error.empty();
    for (int tries = 0; exited && tries < 4 && ports.exit_reason(work.app.vm_id).empty(); ++tries)
    {
        const milliseconds pause{250};
        co_await ports.wait_change(work.app.vm_id, pause);
    }
    BootVerdict verdict = judge_boot(*vm, ports.exit_reason(work.app.vm_id));
    verdict.error.hint = "its console: `dstack logs " + work.app.name + "`";
    co_return co_await boot_failed(ports, work, std::move(verdict.error));
}

Error too_late(const Work& work, std::string_view what, const std::string& last)
{
    Error error{Errc::deadline_exceeded,
                std::string{what} + " within " + std::to_string(work.operation.ready_timeout_ms / 1000) + " s", {}, {}};
    if (!last.empty()) { error.message += "; last seen: " + last; }
    error.hint = "dstack logs " + work.app.name + "; a longer wait: --timeout";
    return error;
}

Task<Result<Done>> set_deadline(Ports& ports, Work& work)
{
    if (work.operation.deadline_ms != 0) { co_return Done{}; }
    work.operation.deadline_ms = ports.now_ms() + work.operation.ready_timeout_ms;
    co_return co_await ports.save(work, no_facts);
}

milliseconds remaining(Ports& ports, const Work& work, milliseconds at_most)
{
    const std::uint64_t now = ports.now_ms();
    const std::uint64_t left = work.operation.deadline_ms > now ? work.operation.deadline_ms - now : 0;
    return milliseconds{std::min<std::uint64_t>(left, static_cast<std::uint64_t>(at_most.count()))};
}

Task<Result<std::string>> wait_boot(Ports& ports, Work& work)
{
    auto set = co_await set_deadline(ports, work);
    if (!set) { co_return std::move(set).error(); }
    std::string last;
    for (;;)
    {
        if (ports.preempted(work.operation.id)) { co_return preempted_error(); }
        auto vm = co_await ports.look(work.app.vm_id);
        if (vm) // a VMM that is away for a moment is not the guest's failure
        {
            const BootVerdict verdict = judge_boot(*vm, ports.exit_reason(work.app.vm_id));
            if (verdict.kind == BootVerdict::Kind::booted) { co_return "guest: " + (*vm)->boot_progress; }
            if (verdict.kind == BootVerdict::Kind::failed)
            {
                co_return co_await guest_failed(ports, work, vm);
            }
            last = (*vm)->boot_progress;
        }
        else { last = vm.error().message; }
        const milliseconds pause = remaining(ports, work, milliseconds{1000});
        if (pause.count() == 0) { co_return too_late(work, "the guest did not boot", last); }
        co_await ports.wait_change(work.app.vm_id, pause);
    }
}

Task<Result<std::string>> wait_answer(Ports& ports, Work& work)
{
    const PortMapping* port = first_tcp_port(work.app.ports);
    if (port == nullptr)
    {
        work.operation.evidence = "the guest reported that its containers run; no TCP port to ask";
        co_return work.operation.evidence;
    }
    auto set = co_await set_deadline(ports, work);
    if (!set) { co_return std::move(set).error(); }
    for (;;)
    {
        if (ports.preempted(work.operation.id)) { co_return preempted_error(); }
        auto answer = co_await ports.probe(*port);
        if (answer)
        {
            work.operation.evidence = *answer;
            co_return *answer;
        }
        auto vm = co_await ports.look(work.app.vm_id);
        if (vm)
        {
            const BootVerdict verdict = judge_boot(*vm, ports.exit_reason(work.app.vm_id));
            if (verdict.kind == BootVerdict::Kind::failed)
            {
                co_return co_await guest_failed(ports, work, vm);
            }
        }
        const milliseconds pause = remaining(ports, work, milliseconds{100});
        if (pause.count() == 0)
        {
            co_return too_late(work, "port " + std::to_string(port->host_port) + " did not answer", answer.error().message);
        }
        co_await ports.wait_change(work.app.vm_id, pause);
    }
}

Task<Result<std::string>> start_vm(Ports& ports, Work& work)
{
    auto started = co_await ports.vm_call("StartVm", work.app.vm_id);
    if (!started) { co_return std::move(started).error(); }
    co_return std::string{};
}

Task<Result<std::string>> one_step(Ports& ports, Work& work, std::string_view step)
{
    if (step == "image") { co_return co_await choose_image(ports, work); }
    if (step == "lease") { co_return co_await take_lease(ports, work); }
    if (step == "allow") { co_return co_await allow_hash(ports, work); }
    if (step == "create_vm") { co_return co_await make_vm(ports, work); }
    if (step == "bind") { co_return co_await bind_leases(ports, work); }
    if (step == "start_vm") { co_return co_await start_vm(ports, work); }
    if (step == "boot") { co_return co_await wait_boot(ports, work); }
    if (step == "probe") { co_return co_await wait_answer(ports, work); }
    co_return Error{Errc::data_loss, "journal: unknown step '" + std::string{step} + "'", {}, {}};
}

/// From the journalled step to the last one.
Task<Result<Done>> go_forward(Ports& ports, Work& work, std::vector<std::string_view> steps)
{
    auto at = std::find(steps.begin(), steps.end(), std::string_view{work.operation.step});
    if (at == steps.end()) { at = steps.begin(); }
    for (; at != steps.end(); ++at)
    {
        work.operation.step = *at;
        if (ports.preempted(work.operation.id)) { co_return preempted_error(); }
        ports.begin_step(*at);
        const std::uint64_t since = ports.now_ms();
        auto detail = co_await one_step(ports, work, *at);
        if (!detail) { co_return std::move(detail).error(); }
        const auto next = at + 1;
        if (next != steps.end()) { work.operation.step = *next; }
        std::vector<Fact> facts;
        facts.emplace_back(step_fact(work, *at, "done", std::move(*detail), elapsed(ports, since)));
        auto saved = co_await ports.save(work, facts);
        if (!saved) { co_return std::move(saved).error(); }
    }
    co_return Done{};
}

// Undoing: what a failed create and every remove do. Each part may find that there is nothing to undo.

Task<Result<Done>> wait_gone(Ports& ports, std::string vm_id)
{
    const std::uint64_t until = ports.now_ms() + static_cast<std::uint64_t>(gone_limit.count());
    for (;;)
    {
        auto vm = co_await ports.look(vm_id);
        if (vm && !*vm) { co_return Done{}; }
        if (ports.now_ms() >= until)
        {
            if (!vm) { co_return std::move(vm).error(); }
            co_return Error{Errc::deadline_exceeded, "vm " + vm_id + ": still there after RemoveVm", {}, {}};
        }
        co_await ports.wait_change(vm_id, poll_pause);
    }
}

Task<Result<std::string>> drop_vm(Ports& ports, Work& work)
{
    if (work.app.vm_id.empty())
    {
        if (!work.app.create_begun) { co_return std::string{}; }
        auto found = co_await find_vm(ports, work);
        if (!found) { co_return std::move(found).error(); }
        if (found->empty())
        {
            work.app.create_begun = false;
            co_return std::string{};
        }
        work.app.vm_id = *found;
    }
    const std::string vm_id = work.app.vm_id;
    auto removed = co_await ports.vm_call("RemoveVm", vm_id);
    if (!removed && removed.error().code != Errc::not_found) { co_return std::move(removed).error(); }
    auto gone = co_await wait_gone(ports, vm_id);
    if (!gone) { co_return std::move(gone).error(); }
    work.app.vm_id.clear();
    work.app.create_begun = false;
    co_return "vm " + vm_id;
}

Task<Result<std::string>> take_back_hash(Ports& ports, Work& work)
{
    if (!work.app.allow_begun) { co_return std::string{}; }
    const std::string reason = work.operation.kind == "remove" ? "removed " + work.app.name : "failed deploy of " + work.app.name;
    auto revoked = co_await ports.revoke(work.app.app_id, work.app.compose_hash, reason);
    if (!revoked) { co_return std::move(revoked).error(); }
    work.app.allow_begun = false;
    co_return "compose hash " + work.app.compose_hash;
}

Task<Result<std::string>> give_leases_back(Ports& ports, Work& work)
{
    if (!work.app.lease_begun) { co_return std::string{}; }
    const std::string reason = work.operation.kind == "remove" ? "removed" : "failed deploy";
    auto released = co_await ports.release(work.app.name, reason);
    if (!released) { co_return std::move(released).error(); }
    work.app.lease_begun = false;
    if (work.app.cid == 0) { co_return std::string{"none was granted"}; }
    co_return "cid " + std::to_string(work.app.cid) + ", " + std::to_string(work.app.ports.size()) + " ports";
}

Task<Result<std::string>> one_undo(Ports& ports, Work& work, std::string_view step)
{
    if (step == "create_vm") { co_return co_await drop_vm(ports, work); }
    if (step == "allow") { co_return co_await take_back_hash(ports, work); }
    co_return co_await give_leases_back(ports, work);
}

Task<Result<std::string>> undo_with_retries(Ports& ports, Work& work, std::string_view step, int at_most)
{
    for (int tries = 1;; ++tries)
    {
        auto detail = co_await one_undo(ports, work, step);
        if (detail || tries >= at_most) { co_return detail; }
        const milliseconds pause{500L * tries};
        co_await ports.wait_change(work.app.vm_id, pause);
    }
}

/// Nothing stays leased that a VM may still use: the VM goes first, and the rest waits for that.
Task<Result<Done>> undo_all(Ports& ports, Work& work, int tries)
{
    constexpr std::array<std::string_view, 3> order{"create_vm", "allow", "lease"};
    for (const std::string_view step : order)
    {
        const std::string undoing = "undo " + std::string{step};
        ports.begin_step(undoing);
        const std::uint64_t since = ports.now_ms();
        auto detail = co_await undo_with_retries(ports, work, step, tries);
        if (!detail) { co_return std::move(detail).error().within("undo " + std::string{step}); }
        if (detail->empty()) { continue; } // there was nothing to undo
        std::vector<Fact> facts;
        facts.emplace_back(step_fact(work, step, "undone", std::move(*detail), elapsed(ports, since)));
        auto saved = co_await ports.save(work, facts);
        (void)saved; // undoing goes on without its journal: each part may be repeated
    }
    co_return Done{};
}

// Ends.

/// The end must be on record before the operation is forgotten: a journal that cannot be written (disk full) is tried again.
Task<> save_end(Ports& ports, Work& work, Fact fact)
{
    std::vector<Fact> facts;
    facts.push_back(std::move(fact));
    for (long pause = 100;; pause = std::min(pause * 2, 5000L))
    {
        auto saved = co_await ports.save(work, facts);
        if (saved) { co_return; }
        const std::string nothing;
        const milliseconds wait{pause};
        co_await ports.wait_change(nothing, wait);
    }
}

Task<> end_well(Ports& ports, Work& work)
{
    Operation& op = work.operation;
    op.state = to_string(OperationState::succeeded);
    op.ended_ms = ports.now_ms();
    schema::DeploySucceeded fact{op.id, op.kind, op.name, work.app.vm_id, op.evidence, elapsed(ports, op.begun_ms)};
    co_await save_end(ports, work, std::move(fact));
}

schema::DeployFailed failed_fact(Ports& ports, Operation& op)
{
    op.state = to_string(OperationState::failed);
    op.ended_ms = ports.now_ms();
    return {op.id, op.kind, op.name, op.failed_step, op.code, op.reason, op.hint, op.denied};
}

Task<> end_badly(Ports& ports, Work& work)
{
    auto fact = failed_fact(ports, work.operation);
    co_await save_end(ports, work, std::move(fact));
}

/// Gives everything back and ends. As long as the end cannot be recorded (disk full), what could not be given back is
/// tried again: when there is room, nothing is left, and nobody has to come and remove it.
Task<> undo_and_end(Ports& ports, Work& work)
{
    const Operation why = work.operation;
    int tries = undo_tries;
    for (long pause = 100;; pause = std::min(pause * 2, 5000L))
    {
        auto undone = co_await undo_all(ports, work, tries);
        tries = 1;
        work.gone = static_cast<bool>(undone);
        if (!undone)
        {
            work.operation.reason = why.reason + "; and " + undone.error().message;
            work.operation.hint = "what could not be undone is kept: run `dstack rm " + work.app.name + "` when it can be";
        }
        std::vector<Fact> facts;
        facts.emplace_back(failed_fact(ports, work.operation));
        auto saved = co_await ports.save(work, facts);
        if (saved) { co_return; }
        const std::string nothing;
        const milliseconds wait{pause};
        co_await ports.wait_change(nothing, wait);
        work.operation = why;
    }
}

Task<> run_create(Ports& ports, Work& work)
{
    if (work.operation.state == "running")
    {
        std::vector<std::string_view> steps(create_steps.begin(), create_steps.end());
        auto done = co_await go_forward(ports, work, std::move(steps));
        if (done)
        {
            work.app.deployed = true;
            co_await end_well(ports, work);
            co_return;
        }
        note_failure(work.operation, work.operation.step, done.error());
        work.operation.state = to_string(OperationState::undoing);
        auto saved = co_await ports.save(work, no_facts);
        (void)saved; // a full disk must not keep the leases
    }
    co_await undo_and_end(ports, work);
}

Task<> run_remove(Ports& ports, Work& work)
{
    auto undone = co_await undo_all(ports, work, undo_tries);
    if (!undone)
    {
        note_failure(work.operation, "remove", undone.error());
        if (work.operation.hint.empty()) { work.operation.hint = "run `dstack rm " + work.app.name + "` again"; }
        co_await end_badly(ports, work);
        co_return;
    }
    work.gone = true;
    work.operation.evidence = "the VM, its leases and its allowed hash are gone";
    co_await end_well(ports, work);
}

Task<> run_start(Ports& ports, Work& work)
{
    std::vector<std::string_view> steps(start_steps.begin(), start_steps.end());
    auto done = co_await go_forward(ports, work, std::move(steps));
    if (done)
    {
        co_await end_well(ports, work);
        co_return;
    }
    note_failure(work.operation, work.operation.step, done.error());
    co_await end_badly(ports, work);
}

bool at_rest(const std::optional<VmSight>& vm) { return !vm || vm->status == "stopped" || vm->status == "exited"; }

Task<Result<Done>> wait_stopped(Ports& ports, Work& work, milliseconds limit)
{
    const std::uint64_t until = ports.now_ms() + static_cast<std::uint64_t>(limit.count());
    for (;;)
    {
        auto vm = co_await ports.look(work.app.vm_id);
        if (vm && at_rest(*vm))
        {
            work.operation.evidence = *vm ? "vmm: " + (*vm)->status : "vmm: there is no such VM";
            co_return Done{};
        }
        if (ports.preempted(work.operation.id)) { co_return preempted_error(); }
        if (ports.now_ms() >= until) { co_return Error{Errc::deadline_exceeded, "the VM still runs", {}, {}}; }
        co_await ports.wait_change(work.app.vm_id, poll_pause);
    }
}

Task<Result<Done>> stop_vm(Ports& ports, Work& work)
{
    if (!work.operation.force)
    {
        work.operation.step = "shutdown_vm";
        auto asked = co_await ports.vm_call("ShutdownVm", work.app.vm_id);
        if (asked)
        {
            auto stopped = co_await wait_stopped(ports, work, shutdown_limit);
            if (stopped || stopped.error().code == Errc::aborted) { co_return stopped; }
        }
    }
    // Killed when it was asked for so, when the guest cannot be asked, and when it does not listen; and so that the VMM
    // knows that it is meant to stay down.
    work.operation.step = "stop_vm";
    auto killed = co_await ports.vm_call("StopVm", work.app.vm_id);
    if (!killed) { co_return std::move(killed).error(); }
    co_return co_await wait_stopped(ports, work, shutdown_limit);
}

Task<> run_stop(Ports& ports, Work& work)
{
    auto stopped = co_await stop_vm(ports, work);
    if (stopped)
    {
        co_await end_well(ports, work);
        co_return;
    }
    note_failure(work.operation, work.operation.step, stopped.error());
    co_await end_badly(ports, work);
}
} // namespace

Task<Work> run_operation(Ports& ports, Work work)
{
    if (work.operation.kind == "create") { co_await run_create(ports, work); }
    else if (work.operation.kind == "remove") { co_await run_remove(ports, work); }
    else if (work.operation.kind == "start") { co_await run_start(ports, work); }
    else { co_await run_stop(ports, work); }
    co_return work;
}

BootVerdict judge_boot(const std::optional<VmSight>& vm, const std::string& exit_reason)
{
    const auto failed = [](Errc code, std::string message, std::string hint = {})
    { return BootVerdict{BootVerdict::Kind::failed, Error{code, std::move(message), std::move(hint), {}}}; };
    if (!vm) { return failed(Errc::not_found, "the VM disappeared: the VMM does not know it any more"); }
    if (!vm->boot_error.empty()) { return failed(Errc::failed_precondition, "the guest reported: " + vm->boot_error); }
    if (vm->status == "exited" || vm->status == "stopped")
    {
        std::string message = "the VM " + vm->status + " while booting";
        if (!exit_reason.empty()) { message += ": " + exit_reason; }
        if (!vm->boot_progress.empty()) { message += " (last reported: " + vm->boot_progress + ")"; }
        return failed(Errc::failed_precondition, std::move(message));
    }
    if (vm->status == "removing" || vm->status == "stopping") { return failed(Errc::aborted, "the VM is " + vm->status); }
    // "running" instead of the guest's words: the VMM restarted and lost them (B.9); the probe decides then.
    if (vm->boot_progress == "done" || vm->boot_progress == "running") { return BootVerdict{BootVerdict::Kind::booted, {}}; }
    return {};
}

Denial explain_boot_error(Error error, const std::optional<schema::Decision>& decision, const AppFacts& app,
                          std::uint64_t begun_ms)
{
    // RFC 3339 in UTC with the same precision sorts as text; a decision of an earlier deploy explains nothing.
    const bool ours = decision && !decision->allowed && decision->compose_hash == app.compose_hash &&
                      decision->time.substr(0, 19) >= rfc3339(begun_ms).substr(0, 19);
    if (!ours) { return {std::move(error), false}; }
    error.code = Errc::permission_denied;
    std::string why = "key release denied by rule " + decision->rule;
    if (!decision->reason.empty()) { why += ": " + decision->reason; }
    if (!decision->expected.empty() || !decision->got.empty())
    {
        why += " (expected " + (decision->expected.empty() ? "nothing" : decision->expected) + ", got " +
               (decision->got.empty() ? "nothing" : decision->got) + ")";
    }
    error.message = why + "; " + error.message;
    const bool by_hash = decision->rule == "compose_hash" || decision->rule == "app";
    if (by_hash && !app.allow) { error.hint = "deploy without --no-allow, or allow the compose hash first: " + app.compose_hash; }
    else { error.hint = "see `dstack events --type auth.` for the decision"; }
    return {std::move(error), true};
}

const PortMapping* first_tcp_port(const std::vector<PortMapping>& ports)
{
    const auto found = std::find_if(ports.begin(), ports.end(), [](const PortMapping& port) { return port.protocol == "tcp"; });
    return found == ports.end() ? nullptr : &*found;
}

} // namespace dstack::deployer
