#pragma once
#include "bus/schema/types.hpp"

// The deployer's words: apps and the operations on them.
namespace dstack::schema
{

/// One published port. In a request host_port 0 means any free one.
struct PortMapping
{
    std::string protocol = "tcp";
    std::string host_address = "127.0.0.1";
    std::uint32_t host_port = 0;
    std::uint32_t vm_port = 0;
    bool privileged = false;
    void describe(Fields& f)
    {
        f.optional("protocol", protocol, "tcp or udp");
        f.optional("host_address", host_address, "address on the host");
        f.optional("host_port", host_port, "port on the host; 0 in a request: any free one");
        f("vm_port", vm_port, "port in the guest");
        f.optional("privileged", privileged, "in a request: the host's port may be below 1024");
    }
};

struct DeployCreate
{
    static constexpr CommandType type{"deploy.create", "deployer", Role::operator_, "", 1,
                                      "Turn a compose file into a running, permitted, reachable VM. Answers when the operation is journalled; follow deploy.* events of `operation`."};
    std::string name;
    std::string compose;
    std::string image;
    std::uint32_t vcpu = 1;
    std::uint32_t memory_mb = 512;
    std::uint32_t disk_gb = 0;
    std::vector<PortMapping> ports;
    bool allow = true;
    bool kms = true;
    bool dry_run = false;
    std::uint64_t ready_timeout_ms = 120'000;
    void describe(Fields& f)
    {
        f("name", name, "the app's name on this host");
        f("compose", compose, "text of the docker-compose file, at most 256 KiB");
        f.optional("image", image, "guest OS image; empty: the newest in the store");
        f.optional("vcpu", vcpu, "virtual CPUs");
        f.optional("memory_mb", memory_mb, "memory in MiB");
        f.optional("disk_gb", disk_gb, "data disk in GiB; 0: none");
        f.optional("ports", ports, "ports to publish");
        f.optional("allow", allow, "have the auth process allow the compose hash");
        f.optional("kms", kms, "the app gets keys from the KMS");
        f.optional("dry_run", dry_run, "only compute the hashes; change nothing");
        f.optional("ready_timeout_ms", ready_timeout_ms, "how long the guest may take until its first port answers, ms");
    }
    struct Reply
    {
        std::string operation;
        std::string app_id;
        std::string compose_hash;
        std::string app_compose;
        bool already = false;
        std::string vm_id;
        std::vector<PortMapping> ports;
        void describe(Fields& f)
        {
            f("operation", operation, "id of the operation; empty for a dry run");
            f("app_id", app_id, "first 40 hex of the compose hash");
            f("compose_hash", compose_hash, "SHA-256 of the exact bytes of the app-compose document, hex");
            f.optional("app_compose", app_compose, "the document itself, for a dry run");
            f("already", already, "the same app is deployed already; nothing was done");
            f.optional("vm_id", vm_id, "UUID, when it is known already");
            f.optional("ports", ports, "as leased, when they are known already");
        }
    };
};

/// One app as the deployer knows it; `state` carries its evidence.
struct App
{
    std::string name;
    std::string app_id;
    std::string compose_hash;
    std::string vm_id;
    std::string instance_id;
    std::string image;
    std::string state;
    std::string evidence;
    std::string observed_at;
    std::string boot_progress;
    std::string boot_error;
    std::uint32_t cid = 0;
    std::vector<PortMapping> ports;
    std::string created_at;
    std::string operation;
    void describe(Fields& f)
    {
        f("name", name, "the app's name");
        f("app_id", app_id, "40 hex");
        f("compose_hash", compose_hash, "64 hex");
        f("vm_id", vm_id, "UUID; empty before the VM exists");
        f.optional("instance_id", instance_id, "40 hex or empty");
        f("image", image, "guest OS image");
        f("state", state, "deploying, booting, ready, stopping, stopped, exited, failed, removing, unknown");
        f("evidence", evidence, "what the state rests on: \"http 200 from 127.0.0.1:18000\", \"vmm: running, starting containers\"");
        f("observed_at", observed_at, "when that was seen, RFC 3339");
        f.optional("boot_progress", boot_progress, "the guest's last word while booting");
        f.optional("boot_error", boot_error, "the guest's error, when it gave one");
        f.optional("cid", cid, "leased vsock CID");
        f.optional("ports", ports, "published ports");
        f("created_at", created_at, "RFC 3339");
        f.optional("operation", operation, "the operation in progress, if any");
    }
};

struct AppList
{
    static constexpr CommandType type{"app.list", "deployer", Role::viewer, "allocator", 1, "Every app on this host."};
    void describe(Fields&) {}
    struct Reply
    {
        std::vector<App> apps;
        void describe(Fields& f) { f("apps", apps, "in the order they were created"); }
    };
};

struct AppInfo
{
    static constexpr CommandType type{"app.info", "deployer", Role::viewer, "logs", 1, "One app."};
    std::string app;
    void describe(Fields& f) { f("app", app, "name, app id, VM id, or an unambiguous prefix of an id"); }
    struct Reply
    {
        App app;
        void describe(Fields& f) { app.describe(f); }
    };
};

/// The answer of a command that begins an operation.
struct OperationBegun
{
    std::string operation;
    bool already = false;
    std::string vm_id;
    void describe(Fields& f)
    {
        f("operation", operation, "follow its deploy.* events; empty when there was nothing to do");
        f("already", already, "it was so already; nothing was done");
        f.optional("vm_id", vm_id, "UUID");
    }
};

struct AppStop
{
    static constexpr CommandType type{"app.stop", "deployer", Role::operator_, "", 1, "Shut an app's VM down; it keeps its leases."};
    std::string app;
    bool force = false;
    void describe(Fields& f)
    {
        f("app", app, "name, app id or VM id");
        f.optional("force", force, "kill instead of ACPI power-down");
    }
    using Reply = OperationBegun;
};
struct AppStart
{
    static constexpr CommandType type{"app.start", "deployer", Role::operator_, "", 1, "Start a stopped app's VM."};
    std::string app;
    void describe(Fields& f) { f("app", app, "name, app id or VM id"); }
    using Reply = OperationBegun;
};
struct AppRemove
{
    static constexpr CommandType type{"app.remove", "deployer", Role::operator_, "", 1,
                                      "Remove an app: its VM, leases and allowed hash. Pre-empts a running deploy. Logs and events stay."};
    std::string app;
    void describe(Fields& f) { f("app", app, "name, app id or VM id"); }
    using Reply = OperationBegun;
};

struct DeployStatus
{
    static constexpr CommandType type{"deploy.status", "deployer", Role::viewer, "", 1, "Where an operation stands."};
    std::string operation;
    void describe(Fields& f) { f("operation", operation, "id of the operation"); }
    struct Reply
    {
        std::string operation;
        std::string kind;
        std::string app;
        std::string state;
        std::string step;
        std::string code;
        std::string reason;
        std::string hint;
        bool denied = false;
        std::vector<App> apps;
        void describe(Fields& f)
        {
            f("operation", operation, "id of the operation");
            f("kind", kind, "create, start, stop, remove");
            f("app", app, "the app's name");
            f("state", state, "running, undoing, succeeded, failed");
            f("step", step, "the step it is at or ended at");
            f.optional("code", code, "error code when failed");
            f.optional("reason", reason, "why, when failed");
            f.optional("hint", hint, "what to do next, when failed");
            f.optional("denied", denied, "policy denied the key release");
            f.optional("apps", apps, "the app as it is now; at most one");
        }
    };
};

struct DeployStarted
{
    static constexpr EventType type{"deploy.started", "deployer", Severity::info, 1, "An operation on an app was journalled and begins."};
    std::string operation;
    std::string kind;
    std::string name;
    std::string app_id;
    std::string compose_hash;
    std::string by;
    std::string_view subject() const { return name; }
    void describe(Fields& f)
    {
        f("operation", operation, "id of the operation");
        f("kind", kind, "create, start, stop, remove");
        f("name", name, "the app's name");
        f("app_id", app_id, "40 hex");
        f("compose_hash", compose_hash, "64 hex");
        f("by", by, "who asked, as the broker attested it");
    }
};

struct DeployStep
{
    static constexpr EventType type{"deploy.step", "deployer", Severity::info, 1, "A step of an operation was done, or undone."};
    std::string operation;
    std::string name;
    std::string step;
    std::string state;
    std::string detail;
    std::uint64_t took_ms = 0;
    std::string_view subject() const { return name; }
    void describe(Fields& f)
    {
        f("operation", operation, "id of the operation");
        f("name", name, "the app's name");
        f("step", step, "lease, allow, create_vm, bind, boot, probe, ...");
        f("state", state, "done, undone, resumed");
        f.optional("detail", detail, "what it gave: \"cid 1000, tcp 127.0.0.1:18000 -> 80\"");
        f("took_ms", took_ms, "ms");
    }
};

struct DeploySucceeded
{
    static constexpr EventType type{"deploy.succeeded", "deployer", Severity::info, 1, "The operation reached its goal, with evidence."};
    std::string operation;
    std::string kind;
    std::string name;
    std::string vm_id;
    std::string evidence;
    std::uint64_t took_ms = 0;
    std::string_view subject() const { return name; }
    void describe(Fields& f)
    {
        f("operation", operation, "id of the operation");
        f("kind", kind, "create, start, stop, remove");
        f("name", name, "the app's name");
        f("vm_id", vm_id, "UUID");
        f("evidence", evidence, "\"http 200 from 127.0.0.1:18000\", \"qemu exited 0\"");
        f("took_ms", took_ms, "ms");
    }
};

struct DeployFailed
{
    static constexpr EventType type{"deploy.failed", "deployer", Severity::error, 1, "The operation failed; what it had made is undone."};
    std::string operation;
    std::string kind;
    std::string name;
    std::string step;
    std::string code;
    std::string reason;
    std::string hint;
    bool denied = false;
    std::string_view subject() const { return name; }
    void describe(Fields& f)
    {
        f("operation", operation, "id of the operation");
        f("kind", kind, "create, start, stop, remove");
        f("name", name, "the app's name");
        f("step", step, "the step that failed");
        f("code", code, "error code");
        f("reason", reason, "what and why");
        f.optional("hint", hint, "what to do next");
        f.optional("denied", denied, "policy denied the key release");
    }
};

struct AppStateChanged
{
    static constexpr EventType type{"app.state_changed", "deployer", Severity::info, 1, "An app is in another state, as observed."};
    std::string name;
    std::string app_id;
    std::string vm_id;
    std::string from;
    std::string to;
    std::string evidence;
    std::string_view subject() const { return name; }
    void describe(Fields& f)
    {
        f("name", name, "the app's name");
        f("app_id", app_id, "40 hex");
        f("vm_id", vm_id, "UUID or empty");
        f("from", from, "state before");
        f("to", to, "state now");
        f("evidence", evidence, "what it rests on");
    }
};

} // namespace dstack::schema
