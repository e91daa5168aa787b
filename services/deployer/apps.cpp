#include "services/deployer/apps.hpp"
#include "services/deployer/workflow.hpp"
#include <algorithm>

namespace dstack::deployer
{

namespace
{
constexpr std::size_t shortest_prefix = 4;

bool same_ports(const std::vector<PortMapping>& a, const std::vector<PortMapping>& b)
{
    const auto equal = [](const PortMapping& x, const PortMapping& y)
    {
        return x.protocol == y.protocol && x.host_address == y.host_address && x.host_port == y.host_port && x.vm_port == y.vm_port;
    };
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), equal);
}

/// The first setting in which they differ; empty when they are the same app.
std::string difference(const AppFacts& existing, const AppFacts& wanted)
{
    const auto number = [](std::string_view what, std::uint32_t is, std::uint32_t asked)
    { return std::string{what} + " is " + std::to_string(is) + ", not " + std::to_string(asked); };
    if (existing.compose_hash != wanted.compose_hash) { return "its compose hash is " + existing.compose_hash.substr(0, 12) + "..., not " + wanted.compose_hash.substr(0, 12) + "..."; }
    if (!wanted.wanted_image.empty() && existing.image != wanted.wanted_image && existing.wanted_image != wanted.wanted_image)
    {
        return "its image is " + existing.image + ", not " + wanted.wanted_image;
    }
    if (existing.vcpu != wanted.vcpu) { return number("vcpu", existing.vcpu, wanted.vcpu); }
    if (existing.memory_mb != wanted.memory_mb) { return number("memory (MiB)", existing.memory_mb, wanted.memory_mb); }
    if (existing.disk_gb != wanted.disk_gb) { return number("disk (GiB)", existing.disk_gb, wanted.disk_gb); }
    if (!same_ports(existing.wanted_ports, wanted.wanted_ports)) { return "it publishes other ports"; }
    return {};
}

bool booted(const VmSight& vm) { return vm.boot_progress == "done" || vm.boot_progress == "running"; }

std::string words_of(const VmSight& vm)
{
    std::string out = "vmm: " + vm.status;
    if (!vm.boot_progress.empty()) { out += ", " + vm.boot_progress; }
    return out;
}

AppSight running_sight(const AppFacts& app, const Look& look, AppSight out)
{
    const VmSight& vm = *look.vm;
    if (!vm.boot_error.empty())
    {
        out.state = "failed";
        out.evidence = "the guest reported: " + vm.boot_error;
        return out;
    }
    out.evidence = words_of(vm);
    if (!booted(vm))
    {
        out.state = "booting";
        return out;
    }
    if (first_tcp_port(app.ports) == nullptr)
    {
        out.state = "ready";
        return out;
    }
    if (!look.probe)
    {
        out.state = "booting";
        out.evidence += ", port not asked yet";
        return out;
    }
    out.state = look.probe->evidence.empty() ? "unknown" : "ready";
    out.evidence = look.probe->evidence.empty() ? words_of(vm) + ", but no answer: " + look.probe->error : look.probe->evidence;
    out.observed_ms = look.probe->at_ms;
    return out;
}

AppSight vm_sight(const AppFacts& app, const Look& look, AppSight out)
{
    const VmSight& vm = *look.vm;
    out.boot_progress = vm.boot_progress;
    out.boot_error = vm.boot_error;
    out.instance_id = vm.instance_id;
    out.evidence = words_of(vm);
    if (vm.status == "running") { return running_sight(app, look, std::move(out)); }
    if (vm.status == "exited")
    {
        out.state = vm.boot_error.empty() ? "exited" : "failed";
        if (!vm.boot_error.empty()) { out.evidence = "the guest reported: " + vm.boot_error; }
        else if (!look.exit_reason.empty()) { out.evidence = "vmm: exited: " + look.exit_reason; }
    }
    else if (vm.status == "stopped" || vm.status == "stopping" || vm.status == "removing") { out.state = vm.status; }
    return out;
}
} // namespace

Result<std::string> resolve(const std::map<std::string, AppFacts>& apps, std::string_view word)
{
    const auto exact = apps.find(std::string{word});
    if (exact != apps.end()) { return exact->first; }
    std::vector<std::string> matches;
    for (const auto& [name, app] : apps)
    {
        const bool is = !word.empty() && (app.app_id == word || app.vm_id == word);
        const bool begins = word.size() >= shortest_prefix && (app.app_id.starts_with(word) || app.vm_id.starts_with(word));
        if (is || begins) { matches.push_back(name); }
    }
    const std::string shown{word.substr(0, 64)};
    if (matches.empty()) { return Error{Errc::not_found, "there is no app '" + shown + "'", "`dstack ls` shows what there is", {}}; }
    if (matches.size() > 1)
    {
        return Error{Errc::invalid_argument, "'" + shown + "' could be " + matches[0] + " or " + matches[1], "give the name", {}};
    }
    return matches.front();
}

NameVerdict judge_name(const AppFacts& existing, const AppFacts& wanted, const Operation* running)
{
    if (running != nullptr && running->kind == "remove")
    {
        return {false, Error{Errc::failed_precondition, "app '" + existing.name + "' is being removed", "try again when it is gone", {}}};
    }
    const std::string other = difference(existing, wanted);
    if (!other.empty())
    {
        return {false, Error{Errc::already_exists, "the name '" + existing.name + "' is taken: " + other,
                             "choose another name, or run `dstack rm " + existing.name + "` first", {}}};
    }
    if (!existing.deployed && running == nullptr)
    {
        return {false, Error{Errc::failed_precondition, "app '" + existing.name + "' is what is left of a failed deploy",
                             "run `dstack rm " + existing.name + "` first", {}}};
    }
    return {true, {}};
}

AppSight judge_sight(const AppFacts& app, const Look& look)
{
    AppSight out;
    out.observed_ms = look.now_ms;
    if (look.vm) { out = vm_sight(app, look, std::move(out)); }
    else if (!look.vmm_answered)
    {
        out.state = "unknown";
        out.evidence = look.vmm_error;
    }
    else if (!app.vm_id.empty())
    {
        out.state = "failed";
        out.evidence = "vmm: there is no VM " + app.vm_id;
    }
    else
    {
        out.state = look.operation_kind.empty() ? "failed" : "deploying";
        out.evidence = look.operation_kind.empty() ? "its deploy failed and could not be undone" : "no VM yet";
    }
    // An operation in progress says where things are going; the evidence stays what was seen.
    if (look.operation_kind == "remove") { out.state = "removing"; }
    if (look.operation_kind == "stop" && out.state != "stopped" && out.state != "exited") { out.state = "stopping"; }
    const bool boots = look.operation_kind == "create" || look.operation_kind == "start";
    if (boots && out.state != "failed" && out.state != "deploying") { out.state = "booting"; }
    return out;
}

schema::App to_app(const AppFacts& facts, const AppSight& sight, std::string_view operation)
{
    schema::App app;
    app.name = facts.name;
    app.app_id = facts.app_id;
    app.compose_hash = facts.compose_hash;
    app.vm_id = facts.vm_id;
    app.instance_id = sight.instance_id;
    app.image = facts.image;
    app.state = sight.state;
    app.evidence = sight.evidence;
    app.observed_at = rfc3339(sight.observed_ms);
    app.boot_progress = sight.boot_progress;
    app.boot_error = sight.boot_error;
    app.cid = facts.cid;
    app.ports = facts.ports;
    app.created_at = rfc3339(facts.created_ms);
    app.operation = operation;
    return app;
}

} // namespace dstack::deployer
