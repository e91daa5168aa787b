#pragma once
#include "bus/schema/deploy.hpp"
#include <cstdint>
#include <string>
#include <vector>

namespace dstack::deployer
{

using schema::PortMapping;

/// What the operations on an app know and change: one row of the journal. Its JSON is the journal's format, so fields are
/// only ever added, as optional ones.
struct AppFacts
{
    std::string name;
    std::string app_id;
    std::string compose_hash;
    std::string app_compose;         ///< the document whose exact bytes are hashed; a column of its own, written once
    std::string image;               ///< empty until the operation has chosen one
    std::string wanted_image;        ///< as requested
    std::uint32_t vcpu = 1;
    std::uint32_t memory_mb = 512;
    std::uint32_t disk_gb = 0;
    bool allow = true;
    bool kms = true;
    std::vector<PortMapping> wanted_ports;
    std::vector<PortMapping> ports;  ///< as leased
    std::uint32_t cid = 0;
    bool lease_begun = false;        ///< a reservation may exist
    bool allow_begun = false;        ///< the policy may have been changed on behalf of this app, and not been changed back
    bool create_begun = false;       ///< CreateVm may have been sent: a VM may exist whose id is not known
    std::vector<std::string> foreign_vms; ///< VMs of this name and app id that were there before CreateVm was sent
    std::string vm_id;
    std::uint64_t created_ms = 0;
    bool deployed = false; ///< its create succeeded; else it is being made, or what is left of a failed one
    void describe(schema::Fields& f);
};

/// Ends of an operation are `succeeded` and `failed`.
enum class OperationState { running, undoing, succeeded, failed };
std::string_view to_string(OperationState state);

/// The span of one step of an operation: same trace, and the same span whenever it is asked again, also by the process after this
/// one. `doing`: the step's name, or "undo NAME". Empty when the operation has no trace.
std::string step_traceparent(std::string_view operation_traceparent, std::string_view doing);

/// One journalled change of one app.
struct Operation
{
    std::string id;
    std::string kind;  ///< create, start, stop, remove
    std::string name;  ///< of the app
    std::string state = "running";
    std::string step;  ///< the next to do, or the one it ended at
    std::string by;
    std::string traceparent;
    bool force = false;
    std::uint64_t begun_ms = 0;
    std::uint64_t ended_ms = 0;
    std::uint64_t ready_timeout_ms = 0;
    std::uint64_t deadline_ms = 0; ///< for boot and probe; unix time; 0 before the guest was started
    // why it fails or failed
    std::string failed_step;
    std::string code;
    std::string reason;
    std::string hint;
    bool denied = false;
    std::string evidence; ///< what success rests on
    void describe(schema::Fields& f);
    bool ended() const { return state == "succeeded" || state == "failed"; }
};

/// What was last seen of an app; written by the observer only.
struct AppSight
{
    std::string state = "unknown"; ///< schema::App::state
    std::string evidence;
    std::string boot_progress;
    std::string boot_error;
    std::string instance_id;
    std::uint64_t observed_ms = 0;
    void describe(schema::Fields& f);
};

/// One VM as the VMM tells of it (B.9).
struct VmSight
{
    std::string id;
    std::string name;
    std::string app_id;
    std::string status; ///< running, exited, stopping, stopped, removing
    std::string boot_progress;
    std::string boot_error;
    std::string instance_id;
};

struct ImageInfo
{
    std::string name;
    std::string version;
};

/// "tcp 127.0.0.1:18000 -> 80"
std::string to_text(const PortMapping& port);
/// "2026-01-31T10:20:30.123Z"
std::string rfc3339(std::uint64_t unix_ms);

} // namespace dstack::deployer
