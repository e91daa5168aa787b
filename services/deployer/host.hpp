#pragma once
#include "services/deployer/apps.hpp"
#include "services/deployer/journal.hpp"
#include "services/deployer/vmm.hpp"
#include "services/deployer/workflow.hpp"
#include <functional>
#include <set>

namespace dstack::deployer
{

/// The real host behind the workflow's ports: the bus, the VMM, the journal, and what was heard of VMs.
class Host : public Ports
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

    Task<Result<Done>> save(Work work, std::vector<Fact> facts) override;
    Task<Result<std::vector<schema::Lease>>> reserve(std::string owner, std::string key,
                                                     std::vector<schema::LeaseWish> wishes) override;
    Task<Result<Done>> bind(std::string owner) override;
    Task<Result<Done>> release(std::string owner, std::string reason) override;
    Task<Result<bool>> allow(std::string app_id, std::string compose_hash, std::string reason, std::string key) override;
    Task<Result<Done>> revoke(std::string app_id, std::string compose_hash, std::string reason) override;
    Task<Result<std::optional<schema::Decision>>> latest_decision(std::string app_id) override;
    Task<Result<std::vector<ImageInfo>>> images() override;
    Task<Result<std::vector<VmSight>>> vms() override;
    Task<Result<std::optional<VmSight>>> look(std::string vm_id) override;
    Task<Result<std::string>> create_vm(AppFacts app) override;
    Task<Result<Done>> vm_call(std::string method, std::string vm_id) override;
    std::string exit_reason(std::string vm_id) override;
    Task<Result<std::string>> probe(PortMapping port) override;
    Task<> wait_change(std::string vm_id, milliseconds limit) override;
    bool preempted(std::string operation) override { return preempted_.contains(operation); }
    std::uint64_t now_ms() override;

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

std::uint64_t unix_now_ms();

} // namespace dstack::deployer
