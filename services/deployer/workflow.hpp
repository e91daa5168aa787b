#pragma once
#include "bus/schema/auth.hpp"
#include "bus/schema/lease.hpp"
#include "services/deployer/model.hpp"
#include "shared/base/result.hpp"
#include "shared/runtime/loop.hpp"
#include "shared/runtime/task.hpp"
#include <chrono>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace dstack::deployer
{

/// One operation and the app it changes, as journalled.
struct Work
{
    Operation operation;
    AppFacts app;
    bool gone = false; ///< the app's row is to be removed: it never came to be, or it was removed
};

/// The facts that an operation says; written with its record, or not at all.
using Fact = std::variant<schema::DeployStep, schema::DeploySucceeded, schema::DeployFailed>;

/// What a workflow may touch. Real: bus clients, the VMM's HTTP API, SQLite. Tests: a fake host.
/// Every call has its own deadline; any may be repeated after a crash.
class Ports
{
  public:
    virtual ~Ports() = default;

    /// Durable when it returns.
    virtual Task<Result<Done>> save(Work work, std::vector<Fact> facts) = 0;

    virtual Task<Result<std::vector<schema::Lease>>> reserve(std::string owner, std::string key,
                                                             std::vector<schema::LeaseWish> wishes) = 0;
    virtual Task<Result<Done>> bind(std::string owner) = 0;
    virtual Task<Result<Done>> release(std::string owner, std::string reason) = 0;

    /// What is asked of others from now on belongs to that step, or to "undo STEP".
    virtual void begin_step(std::string_view doing) = 0;

    /// True when the policy was changed. The key makes it the same answer when asked again.
    virtual Task<Result<bool>> allow(std::string app_id, std::string compose_hash, std::string reason, std::string key) = 0;
    virtual Task<Result<Done>> revoke(std::string app_id, std::string compose_hash, std::string reason) = 0;
    /// The newest key-release decision for the app, if there is one.
    virtual Task<Result<std::optional<schema::Decision>>> latest_decision(std::string app_id) = 0;

    virtual Task<Result<std::vector<ImageInfo>>> images() = 0;
    virtual Task<Result<std::vector<VmSight>>> vms() = 0;
    virtual Task<Result<std::optional<VmSight>>> look(std::string vm_id) = 0;
    virtual Task<Result<std::string>> create_vm(AppFacts app) = 0;
    /// StartVm, StopVm, ShutdownVm, RemoveVm.
    virtual Task<Result<Done>> vm_call(std::string method, std::string vm_id) = 0;
    /// Why the VM's process ended and its last words, as far as they were heard; empty when nothing was.
    virtual std::string exit_reason(std::string vm_id) = 0;

    /// Asks a published port once: "http 200 from 127.0.0.1:18000".
    virtual Task<Result<std::string>> probe(PortMapping port) = 0;
    /// Until something happens to the VM or the operation is pre-empted, at most `limit`.
    virtual Task<> wait_change(std::string vm_id, milliseconds limit) = 0;
    /// A remove wants this operation to end.
    virtual bool preempted(std::string operation) = 0;
    /// Unix time, ms.
    virtual std::uint64_t now_ms() = 0;
};

/// Runs the operation from wherever its journal says it is, to its end. Whatever fails is journalled and said as
/// deploy.failed; a create that fails undoes all that it made.
Task<Work> run_operation(Ports& ports, Work work);

/// What a guest's state means for somebody who waits for its boot.
struct BootVerdict
{
    enum class Kind { wait, booted, failed } kind = Kind::wait;
    Error error{};
};
BootVerdict judge_boot(const std::optional<VmSight>& vm, const std::string& exit_reason);

/// The failure of a boot whose keys the policy denied: the rule, what was expected, what came, what to do.
/// `error` as it is when the decision is not a denial of this compose hash.
struct Denial
{
    Error error;
    bool denied = false;
};
Denial explain_boot_error(Error error, const std::optional<schema::Decision>& decision, const AppFacts& app,
                          std::uint64_t begun_ms);

/// First published TCP port: where the evidence comes from; nothing to ask when there is none.
const PortMapping* first_tcp_port(const std::vector<PortMapping>& ports);

} // namespace dstack::deployer
