#pragma once
#include "services/deployer/app_compose.hpp"
#include "services/deployer/workflow.hpp"
#include <map>
#include <set>

namespace dstack::deployer::test
{

/// The state of a host that survives a crash of the deployer: journal, allocator, policy, VMM; with a clock that only waits
/// move. `crash_at` counts calls: there the deployer dies, before or after the call took effect.
class FakeHost : public Ports
{
  public:
    struct Vm
    {
        VmSight sight;
        std::vector<std::string> script; ///< boot_progress, one per wait
    };

    // the world
    std::optional<Work> journal;
    std::vector<Fact> said;
    std::set<std::string> leased;
    std::set<std::string> bound;
    std::set<std::string> allowed;
    std::map<std::string, bool> allow_answers; ///< by idempotency key
    std::map<std::string, Vm> vms_;
    std::vector<ImageInfo> images_{{"dstack-dev-0.5.6", "0.5.6"}, {"dstack-dev-0.5.10", "0.5.10"}};
    std::vector<std::string> boot_script{"booting", "requesting app keys", "starting containers", "done"};
    std::string boot_error;        ///< reported instead of the last word of the script
    std::string exits_with;        ///< the VM's process ends at the end of the script
    std::optional<schema::Decision> decision;
    int refused_probes = 2;
    bool honours_keys = true;      ///< the auth process gives the same answer for the same key
    int created = 0;
    std::uint64_t now = 1'800'000'000'000;

    // what goes wrong
    int calls = 0;
    int crash_at = -1;
    bool crash_before = false;
    std::map<std::string, Error> fails; ///< by the name of the call
    bool answer_lost = false;           ///< CreateVm works, but its answer does not come
    int preempt_at = -1;
    std::uint64_t mended_at = 0; ///< from then on nothing fails; 0: never

    void begin_step(std::string_view) override {}

    struct Never
    {
        bool dead;
        bool await_ready() const noexcept { return !dead; }
        void await_suspend(std::coroutine_handle<>) const noexcept {}
        void await_resume() const noexcept {}
    };
    Never before()
    {
        ++calls;
        return Never{calls == crash_at && crash_before};
    }
    Never after() const { return Never{calls == crash_at && !crash_before}; }
    std::optional<Error> failure(const std::string& call) const
    {
        const auto found = fails.find(call);
        return found == fails.end() ? std::nullopt : std::optional<Error>{found->second};
    }

    Task<Result<Done>> save(Work work, std::vector<Fact> facts) override
    {
        co_await before();
        auto error = failure("save");
        if (error) { co_return *error; }
        journal = work;
        for (auto& fact : facts) { said.push_back(fact); }
        co_await after();
        co_return Done{};
    }
    Task<Result<std::vector<schema::Lease>>> reserve(std::string owner, std::string key,
                                                     std::vector<schema::LeaseWish> wishes) override
    {
        (void)key;
        co_await before();
        auto error = failure("reserve");
        if (error) { co_return *error; }
        leased.insert(owner);
        std::vector<schema::Lease> out;
        for (const auto& wish : wishes)
        {
            schema::Lease lease;
            lease.kind = wish.kind;
            lease.value = wish.kind == "cid" ? 1000U : (wish.value != 0 ? wish.value : 18000U + static_cast<unsigned>(out.size()));
            out.push_back(lease);
        }
        co_await after();
        co_return out;
    }
    Task<Result<Done>> bind(std::string owner) override
    {
        co_await before();
        auto error = failure("bind");
        if (error) { co_return *error; }
        bound.insert(owner);
        co_await after();
        co_return Done{};
    }
    Task<Result<Done>> release(std::string owner, std::string) override
    {
        co_await before();
        auto error = failure("release");
        if (error) { co_return *error; }
        leased.erase(owner);
        bound.erase(owner);
        co_await after();
        co_return Done{};
    }
    Task<Result<bool>> allow(std::string, std::string hash, std::string, std::string key) override
    {
        co_await before();
        auto error = failure("allow");
        if (error) { co_return *error; }
        bool changed = allowed.insert(hash).second;
        if (honours_keys) { changed = allow_answers.emplace(key, changed).first->second; }
        co_await after();
        co_return changed;
    }
    Task<Result<Done>> revoke(std::string, std::string hash, std::string) override
    {
        co_await before();
        auto error = failure("revoke");
        if (error) { co_return *error; }
        allowed.erase(hash);
        co_await after();
        co_return Done{};
    }
    Task<Result<std::optional<schema::Decision>>> latest_decision(std::string) override { co_return decision; }
    Task<Result<std::vector<ImageInfo>>> images() override
    {
        co_await before();
        auto error = failure("images");
        if (error) { co_return *error; }
        co_return images_;
    }
    Task<Result<std::vector<VmSight>>> vms() override
    {
        co_await before();
        auto error = failure("vms");
        if (error) { co_return *error; }
        std::vector<VmSight> out;
        for (const auto& [id, vm] : vms_) { out.push_back(vm.sight); }
        co_return out;
    }
    Task<Result<std::optional<VmSight>>> look(std::string vm_id) override
    {
        co_await before();
        auto error = failure("look");
        if (error) { co_return *error; }
        const auto found = vms_.find(vm_id);
        if (found == vms_.end()) { co_return std::optional<VmSight>{}; }
        co_return std::optional<VmSight>{found->second.sight};
    }
    Task<Result<std::string>> create_vm(AppFacts app) override
    {
        co_await before();
        auto error = failure("create_vm");
        if (error) { co_return *error; }
        ++created;
        const std::string id = "vm-" + std::to_string(created);
        vms_[id] = Vm{VmSight{id, app.name, app.app_id, "running", "", "", ""}, boot_script};
        co_await after();
        if (answer_lost) { co_return Error{Errc::unavailable, "connection_reset: vmm", {}, {}}; }
        co_return id;
    }
    Task<Result<Done>> vm_call(std::string method, std::string vm_id) override
    {
        co_await before();
        auto error = failure(method);
        if (error) { co_return *error; }
        if (!vms_.contains(vm_id)) { co_return Error{Errc::not_found, method + ": VM not found", {}, {}}; }
        Vm& vm = vms_[vm_id];
        if (method == "RemoveVm") { vms_.erase(vm_id); }
        else if (method == "StopVm") { vm.sight.status = "stopped"; }
        else if (method == "ShutdownVm") { vm.sight.status = "stopped"; }
        else
        {
            vm.sight.status = "running";
            vm.sight.boot_progress.clear();
            vm.script = boot_script;
        }
        co_await after();
        co_return Done{};
    }
    std::string exit_reason(std::string) override { return exits_with; }
    Task<Result<std::string>> probe(PortMapping port) override
    {
        co_await before();
        if (refused_probes > 0)
        {
            --refused_probes;
            co_return Error{Errc::unavailable, "connection_reset: nobody listens yet", {}, {}};
        }
        co_return "http 200 from " + port.host_address + ":" + std::to_string(port.host_port);
    }
    Task<> wait_change(std::string vm_id, milliseconds limit) override
    {
        co_await before();
        now += static_cast<std::uint64_t>(limit.count());
        if (mended_at != 0 && now >= mended_at) { fails.clear(); }
        const auto found = vms_.find(vm_id);
        if (found == vms_.end()) { co_return; }
        Vm& vm = found->second;
        if (vm.script.empty()) { co_return; }
        vm.sight.boot_progress = vm.script.front();
        vm.script.erase(vm.script.begin());
        if (!vm.script.empty()) { co_return; }
        vm.sight.boot_error = boot_error;
        if (!exits_with.empty()) { vm.sight.status = "exited"; }
    }
    bool preempted(std::string) override { return preempt_at >= 0 && calls >= preempt_at; }
    std::uint64_t now_ms() override { return now; }
};

/// Runs a task until it ends or never will; destroying the drive is the crash.
class Drive
{
  public:
    struct promise_type
    {
        Drive get_return_object() { return Drive{std::coroutine_handle<promise_type>::from_promise(*this)}; }
        std::suspend_never initial_suspend() const noexcept { return {}; }
        std::suspend_always final_suspend() const noexcept { return {}; }
        void return_void() const noexcept {}
        void unhandled_exception() const noexcept { std::terminate(); }
    };
    Drive(const Drive&) = delete;
    Drive& operator=(const Drive&) = delete;
    ~Drive() { handle_.destroy(); }

  private:
    explicit Drive(std::coroutine_handle<promise_type> handle) : handle_(handle) {}
    std::coroutine_handle<promise_type> handle_;
};

inline Drive drive(Task<Work> task, std::optional<Work>* out)
{
    auto work = co_await task;
    out->emplace(std::move(work));
}

/// Nothing when the deployer died on the way.
inline std::optional<Work> run(FakeHost& host, Work work)
{
    std::optional<Work> out;
    const Drive running = drive(run_operation(host, std::move(work)), &out);
    return out;
}

inline Work deploy_work(const FakeHost& host)
{
    const AppDocument document = build_app_document("hello", "services: {web: {image: busybox}}", true);
    Work work;
    work.app.name = "hello";
    work.app.app_id = document.app_id;
    work.app.compose_hash = document.compose_hash;
    work.app.app_compose = document.text;
    work.app.wanted_ports = {PortMapping{"tcp", "127.0.0.1", 0, 80}};
    work.operation.id = "op-1";
    work.operation.kind = "create";
    work.operation.name = "hello";
    work.operation.begun_ms = host.now;
    work.operation.ready_timeout_ms = 60'000;
    return work;
}

} // namespace dstack::deployer::test
