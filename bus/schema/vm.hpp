#pragma once
#include "bus/schema/types.hpp"

// The embedded VMM's words: what happens to a VM.
namespace dstack::schema
{

struct VmCreated
{
    static constexpr EventType type{"vm.created", "vmm-local", Severity::info, 1, "A VM is defined: its work directory is complete."};
    std::string vm_id;
    std::string name;
    std::string app_id;
    std::string compose_hash;
    std::string image;
    std::uint32_t vcpu = 0;
    std::uint32_t memory_mb = 0;
    std::string serial_log;
    std::string_view subject() const { return vm_id; }
    void describe(Fields& f)
    {
        f("vm_id", vm_id, "UUID");
        f("name", name, "as given");
        f("app_id", app_id, "40 hex");
        f("compose_hash", compose_hash, "64 hex");
        f("image", image, "guest OS image");
        f("vcpu", vcpu, "virtual CPUs");
        f("memory_mb", memory_mb, "memory in MiB");
        f("serial_log", serial_log, "path of the serial log on the host");
    }
};

struct VmStarted
{
    static constexpr EventType type{"vm.started", "vmm-local", Severity::info, 1, "QEMU runs."};
    std::string vm_id;
    std::string name;
    std::uint64_t pid = 0;
    std::string accel;
    std::string serial_log;
    std::string_view subject() const { return vm_id; }
    void describe(Fields& f)
    {
        f("vm_id", vm_id, "UUID");
        f("name", name, "as given");
        f("pid", pid, "QEMU's process");
        f("accel", accel, "kvm or tcg (software emulation)");
        f("serial_log", serial_log, "path of the serial log on the host");
    }
};

struct VmAdopted
{
    static constexpr EventType type{"vm.adopted", "vmm-local", Severity::info, 1, "The VMM came back and found the VM running; nothing was restarted."};
    std::string vm_id;
    std::string name;
    std::uint64_t pid = 0;
    std::string serial_log;
    std::string_view subject() const { return vm_id; }
    void describe(Fields& f)
    {
        f("vm_id", vm_id, "UUID");
        f("name", name, "as given");
        f("pid", pid, "QEMU's process");
        f("serial_log", serial_log, "path of the serial log on the host");
    }
};

struct VmBootProgress
{
    static constexpr EventType type{"vm.boot_progress", "vmm-local", Severity::info, 1, "The guest reported a boot phase."};
    std::string vm_id;
    std::string name;
    std::string phase;
    std::string_view subject() const { return vm_id; }
    void describe(Fields& f)
    {
        f("vm_id", vm_id, "UUID");
        f("name", name, "as given");
        f("phase", phase, "the guest's words: requesting app keys, starting containers, ...");
    }
};

struct VmBootError
{
    static constexpr EventType type{"vm.boot_error", "vmm-local", Severity::error, 1, "The guest reported that it cannot go on."};
    std::string vm_id;
    std::string name;
    std::string reason;
    std::string_view subject() const { return vm_id; }
    void describe(Fields& f)
    {
        f("vm_id", vm_id, "UUID");
        f("name", name, "as given");
        f("reason", reason, "the guest's words");
    }
};

struct VmReady
{
    static constexpr EventType type{"vm.ready", "vmm-local", Severity::info, 1, "The guest reported that its containers run (boot progress: done)."};
    std::string vm_id;
    std::string name;
    std::string instance_id;
    std::uint64_t boot_ms = 0;
    std::string_view subject() const { return vm_id; }
    void describe(Fields& f)
    {
        f("vm_id", vm_id, "UUID");
        f("name", name, "as given");
        f("instance_id", instance_id, "40 hex or empty");
        f("boot_ms", boot_ms, "from starting QEMU to ready, ms");
    }
};

struct VmStopping
{
    static constexpr EventType type{"vm.stopping", "vmm-local", Severity::info, 1, "The VM was asked to stop."};
    std::string vm_id;
    std::string name;
    std::string how;
    std::string_view subject() const { return vm_id; }
    void describe(Fields& f)
    {
        f("vm_id", vm_id, "UUID");
        f("name", name, "as given");
        f("how", how, "shutdown (ACPI power-down) or stop (killed)");
    }
};

struct VmStopped
{
    static constexpr EventType type{"vm.stopped", "vmm-local", Severity::info, 1, "The VM was asked to stop and its process is gone."};
    std::string vm_id;
    std::string name;
    std::string how;
    std::string_view subject() const { return vm_id; }
    void describe(Fields& f)
    {
        f("vm_id", vm_id, "UUID");
        f("name", name, "as given");
        f("how", how, "shutdown, stop or guest (it powered itself off)");
    }
};

struct VmExited
{
    static constexpr EventType type{"vm.exited", "vmm-local", Severity::error, 1, "The VM's process ended without being asked to."};
    std::string vm_id;
    std::string name;
    std::string reason;
    std::vector<std::string> last_lines;
    bool will_restart = false;
    std::string_view subject() const { return vm_id; }
    void describe(Fields& f)
    {
        f("vm_id", vm_id, "UUID");
        f("name", name, "as given");
        f("reason", reason, "kernel panic: what it said, powered off, boot error: ..., the guest reset itself, ...");
        f("last_lines", last_lines, "end of the serial log, at most 20 lines");
        f("will_restart", will_restart, "whether the VMM will start it again");
    }
};

struct VmRemoved
{
    static constexpr EventType type{"vm.removed", "vmm-local", Severity::info, 1, "The VM and its work directory are gone."};
    std::string vm_id;
    std::string name;
    std::string_view subject() const { return vm_id; }
    void describe(Fields& f)
    {
        f("vm_id", vm_id, "UUID");
        f("name", name, "as given");
    }
};

struct VmNotifyRefused
{
    static constexpr EventType type{"vm.notify_refused", "vmm-local", Severity::warning, 1, "The guest reported something that the host does not take."};
    std::string vm_id;
    std::string name;
    std::string reason;
    std::string_view subject() const { return vm_id; }
    void describe(Fields& f)
    {
        f("vm_id", vm_id, "UUID");
        f("name", name, "as given");
        f("reason", reason, "over 4096 bytes, unknown event, no JSON, ...");
    }
};

} // namespace dstack::schema
