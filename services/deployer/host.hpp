#pragma once
#include "services/deployer/apps.hpp"
#include "services/deployer/journal.hpp"
#include "services/deployer/vmm.hpp"
#include "services/deployer/workflow.hpp"
#include <functional>
#include <set>

namespace dstack::deployer
{

/// The real host behind the workflow's ports: the bus, the VMM, the journal, and what was heard of VMs. `trace` is the W3C
/// trace context of who asks; what is asked of others becomes a child of it.
class Host
{
  public:
    Host(Loop& loop, bus::Client& client, Vmm& vmm, Journal& journal) : loop_(loop), client_(client), vmm_(vmm), journal_(journal) {}

    /// Called after each save; `saved` is false when what it tells is not on record (disk full).
    std::function<void(const Work&, bool saved)> on_saved;

    /// Something happened to the VM: whoever waits for it looks again.
    void pulse(const std::string& vm_id);
    /// The VM's process ended unasked; forgotten when it starts again.
    void note_exit(const std::string& vm_id, std::string reason);
    void forget_exit(const std::string& vm_id) { exits_.erase(vm_id); }
    /// The operation is to end at its next step; whoever waits in it wakes up.
    void preempt(const std::string& operation);
    void forget(const std::string& operation) { preempted_.erase(operation); }
    /// The newest answer of the port, by app.
    std::map<std::string, Probe> probes;

    Task<Result<Done>> save(Work work, std::vector<Fact> facts);
    Task<Result<std::vector<schema::Lease>>> reserve(std::string owner, std::string key,
                                                     std::vector<schema::LeaseWish> wishes, std::string trace);
    Task<Result<Done>> bind(std::string owner, std::string trace);
    Task<Result<Done>> release(std::string owner, std::string reason, std::string trace);
    Task<Result<bool>> allow(std::string app_id, std::string compose_hash, std::string reason, std::string key, std::string trace);
    Task<Result<Done>> revoke(std::string app_id, std::string compose_hash, std::string reason, std::string trace);
    Task<Result<std::optional<schema::Decision>>> latest_decision(std::string app_id);
    Task<Result<std::vector<ImageInfo>>> images();
    Task<Result<std::vector<VmSight>>> vms();
    Task<Result<std::optional<VmSight>>> look(std::string vm_id);
    Task<Result<std::string>> create_vm(AppFacts app, std::string trace);
    Task<Result<Done>> vm_call(std::string method, std::string vm_id, std::string trace);
    std::string exit_reason(std::string vm_id);
    Task<Result<std::string>> probe(PortMapping port);
    Task<> wait_change(std::string vm_id, milliseconds limit);
    bool preempted(std::string operation) { return preempted_.contains(operation); }
    std::uint64_t now_ms();

    VmDefaults vm_defaults;

  private:
    Event& event_of(const std::string& vm_id);
    Loop& loop_;
    bus::Client& client_;
    Vmm& vmm_;
    Journal& journal_;
    std::map<std::string, std::unique_ptr<Event>> changes_; ///< by VM id; sticky until somebody has waited
    std::map<std::string, std::string> exits_;              ///< by VM id
    std::set<std::string> preempted_;
    std::map<std::string, int> held_;                       ///< by port: see ask_port
};

/// The host as one operation sees it: what it asks of others carries its trace and the step's span.
class OperationHost final : public Ports
{
  public:
    OperationHost(Host& host, std::string trace) : host_(host), operation_trace_(std::move(trace)), trace_(operation_trace_) {}

    Task<Result<Done>> save(Work work, std::vector<Fact> facts) override { return host_.save(std::move(work), std::move(facts)); }
    Task<Result<std::vector<schema::Lease>>> reserve(std::string owner, std::string key, std::vector<schema::LeaseWish> wishes) override
    {
        return host_.reserve(std::move(owner), std::move(key), std::move(wishes), trace_);
    }
    void begin_step(std::string_view doing) override { trace_ = step_traceparent(operation_trace_, doing); }
    Task<Result<Done>> bind(std::string owner) override { return host_.bind(std::move(owner), trace_); }
    Task<Result<Done>> release(std::string owner, std::string reason) override
    {
        return host_.release(std::move(owner), std::move(reason), trace_);
    }
    Task<Result<bool>> allow(std::string app_id, std::string compose_hash, std::string reason, std::string key) override
    {
        return host_.allow(std::move(app_id), std::move(compose_hash), std::move(reason), std::move(key), trace_);
    }
    Task<Result<Done>> revoke(std::string app_id, std::string compose_hash, std::string reason) override
    {
        return host_.revoke(std::move(app_id), std::move(compose_hash), std::move(reason), trace_);
    }
    Task<Result<std::optional<schema::Decision>>> latest_decision(std::string app_id) override
    {
        return host_.latest_decision(std::move(app_id));
    }
    Task<Result<std::vector<ImageInfo>>> images() override { return host_.images(); }
    Task<Result<std::vector<VmSight>>> vms() override { return host_.vms(); }
    Task<Result<std::optional<VmSight>>> look(std::string vm_id) override { return host_.look(std::move(vm_id)); }
    Task<Result<std::string>> create_vm(AppFacts app) override { return host_.create_vm(std::move(app), trace_); }
    Task<Result<Done>> vm_call(std::string method, std::string vm_id) override
    {
        return host_.vm_call(std::move(method), std::move(vm_id), trace_);
    }
    std::string exit_reason(std::string vm_id) override { return host_.exit_reason(std::move(vm_id)); }
    Task<Result<std::string>> probe(PortMapping port) override { return host_.probe(std::move(port)); }
    Task<> wait_change(std::string vm_id, milliseconds limit) override { return host_.wait_change(std::move(vm_id), limit); }
    bool preempted(std::string operation) override { return host_.preempted(std::move(operation)); }
    std::uint64_t now_ms() override { return host_.now_ms(); }

  private:
    Host& host_;
    std::string operation_trace_;
    std::string trace_; ///< of the step that is being done: the caller's span, as W3C wants it
};

std::uint64_t unix_now_ms();

} // namespace dstack::deployer
