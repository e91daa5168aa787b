#include "services/deployer/model.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include <array>
#include <ctime>

namespace dstack::deployer
{

void AppFacts::describe(schema::Fields& f)
{
    f("name", name, "the app's name");
    f("app_id", app_id, "40 hex");
    f("compose_hash", compose_hash, "64 hex");
    f.optional("image", image, "guest OS image");
    f.optional("wanted_image", wanted_image, "as requested");
    f.optional("vcpu", vcpu, "virtual CPUs");
    f.optional("memory_mb", memory_mb, "MiB");
    f.optional("disk_gb", disk_gb, "GiB");
    f.optional("allow", allow, "allow the hash");
    f.optional("kms", kms, "keys from the KMS");
    f.optional("wanted_ports", wanted_ports, "as requested");
    f.optional("ports", ports, "as leased");
    f.optional("cid", cid, "as leased");
    f.optional("lease_begun", lease_begun, "a reservation may exist");
    f.optional("allow_begun", allow_begun, "the policy may have been changed");
    f.optional("create_begun", create_begun, "CreateVm may have been sent");
    f.optional("foreign_vms", foreign_vms, "VMs that were there before");
    f.optional("vm_id", vm_id, "UUID");
    f.optional("created_ms", created_ms, "unix time");
    f.optional("deployed", deployed, "its create succeeded");
}

void Operation::describe(schema::Fields& f)
{
    f("id", id, "id");
    f("kind", kind, "create, start, stop, remove");
    f("name", name, "the app's name");
    f("state", state, "running, undoing, succeeded, failed");
    f("step", step, "the next to do");
    f.optional("by", by, "who asked");
    f.optional("traceparent", traceparent, "W3C trace context");
    f.optional("force", force, "kill");
    f.optional("begun_ms", begun_ms, "unix time");
    f.optional("ended_ms", ended_ms, "unix time");
    f.optional("ready_timeout_ms", ready_timeout_ms, "ms");
    f.optional("deadline_ms", deadline_ms, "unix time");
    f.optional("failed_step", failed_step, "the step that failed");
    f.optional("code", code, "error code");
    f.optional("reason", reason, "why");
    f.optional("hint", hint, "what to do next");
    f.optional("denied", denied, "policy denied the key release");
    f.optional("evidence", evidence, "what success rests on");
}

void AppSight::describe(schema::Fields& f)
{
    f("state", state, "as observed");
    f.optional("evidence", evidence, "what it rests on");
    f.optional("boot_progress", boot_progress, "the guest's last word");
    f.optional("boot_error", boot_error, "the guest's error");
    f.optional("instance_id", instance_id, "40 hex");
    f.optional("observed_ms", observed_ms, "unix time");
}

std::string_view to_string(OperationState state)
{
    switch (state)
    {
    case OperationState::running: return "running";
    case OperationState::undoing: return "undoing";
    case OperationState::succeeded: return "succeeded";
    case OperationState::failed: return "failed";
    }
    return "failed";
}

std::string to_text(const PortMapping& port)
{
    const bool six = port.host_address.find(':') != std::string::npos;
    return port.protocol + " " + (six ? "[" : "") + port.host_address + (six ? "]" : "") + ":" +
           (port.host_port == 0 ? "auto" : std::to_string(port.host_port)) + " -> " + std::to_string(port.vm_port);
}

std::string rfc3339(std::uint64_t unix_ms)
{
    const auto seconds = static_cast<std::time_t>(unix_ms / 1000);
    std::tm parts{};
    ::gmtime_r(&seconds, &parts);
    std::array<char, 32> text{};
    const std::size_t size = std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%S", &parts);
    std::string millis = std::to_string(unix_ms % 1000);
    millis.insert(0, 3 - millis.size(), '0');
    return std::string{text.data(), size} + "." + millis + "Z";
}

std::string step_traceparent(std::string_view operation_traceparent, std::string_view doing)
{
    constexpr std::size_t span_begin = 36;
    constexpr std::size_t span_end = 52;
    if (operation_traceparent.size() != 55) { return {}; }
    const std::string name = std::string{operation_traceparent} + ' ' + std::string{doing};
    const std::string span = crypto::to_hex(crypto::sha256(name)).substr(0, span_end - span_begin);
    return std::string{operation_traceparent.substr(0, span_begin)} + span + std::string{operation_traceparent.substr(span_end)};
}

} // namespace dstack::deployer
