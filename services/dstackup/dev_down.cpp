#include "services/dstackup/dev.hpp"
#include "services/dstackup/processes.hpp"
#include "shared/http/client.hpp"
#include "shared/process/process.hpp"
#include "shared/state/files.hpp"
#include <nlohmann/json.hpp>
#include <unistd.h>

namespace dstack::up
{

namespace
{
using Json = nlohmann::json;
constexpr milliseconds rpc_timeout{5'000};
constexpr milliseconds guest_grace{8'000};
constexpr milliseconds look_again{50};
constexpr milliseconds supervisor_grace{15'000};
constexpr milliseconds leftover_grace{3'000};

struct Down
{
    std::size_t guests = 0;
    std::size_t leftovers = 0;
    bool was_up = false;
};

std::vector<Running> guests_of(const Layout& layout)
{
    const auto ours = [&](std::string_view cmdline)
    {
        return cmdline.find("qemu-system-") != std::string_view::npos &&
               mentions_below(cmdline, layout.state("vmm-local"));
    };
    return find_processes(ours);
}

Task<Result<Json>> vmm_call(Loop& loop, std::uint16_t port, std::string method, std::string body)
{
    http::ClientRequest request;
    request.method = "POST";
    request.url = "http://127.0.0.1:" + std::to_string(port) + "/prpc/" + method + "?json";
    request.headers.add("Content-Type", "application/json");
    request.body = std::move(body);
    request.timeout = rpc_timeout;
    http::Client client{loop};
    auto response = co_await client.send(std::move(request));
    if (!response) { co_return std::move(response).error(); }
    auto answer = Json::parse(response->body, nullptr, false);
    if (response->status != 200 || answer.is_discarded())
    {
        co_return Error{Errc::unavailable, method + ": the VMM answered " + std::to_string(response->status), {}, {}};
    }
    co_return answer;
}

/// Ids of the VMs whose QEMU runs.
std::vector<std::string> running_ids(const Json& status)
{
    std::vector<std::string> out;
    const auto vms = status.find("vms");
    if (vms == status.end() || !vms->is_array()) { return out; }
    for (const auto& vm : *vms)
    {
        const auto id = vm.is_object() ? vm.find("id") : vm.end();
        const auto state = vm.is_object() ? vm.find("status") : vm.end();
        if (id == vm.end() || state == vm.end() || !id->is_string() || !state->is_string()) { continue; }
        const auto word = state->get<std::string>();
        if (word == "running" || word == "stopping") { out.push_back(id->get<std::string>()); }
    }
    return out;
}

/// Asks the VMM to shut every guest down cleanly; what does not go is stopped, so that nothing starts it again.
Task<> stop_guests(Loop& loop, const Global& global, const Layout& layout, std::uint16_t port)
{
    std::string none = "{}";
    auto status = co_await vmm_call(loop, port, "Status", none);
    if (!status)
    {
        warn("the VMM does not answer (" + status.error().message + "): its guests are ended as processes");
        co_return;
    }
    const auto ids = running_ids(*status);
    for (const auto& id : ids)
    {
        say(global, "shutting down guest " + id);
        std::string body = Json{{"id", id}}.dump();
        auto asked = co_await vmm_call(loop, port, "ShutdownVm", body);
        if (!asked) { say(global, "guest " + id + " takes no shutdown: " + asked.error().message); }
    }
    const auto deadline = std::chrono::steady_clock::now() + guest_grace;
    while (!guests_of(layout).empty() && std::chrono::steady_clock::now() < deadline)
    {
        co_await sleep_for(loop, look_again);
    }
    for (const auto& id : ids)
    {
        std::string body = Json{{"id", id}}.dump();
        auto stopped = co_await vmm_call(loop, port, "StopVm", body);
        if (!stopped) { warn("guest " + id + ": " + stopped.error().message); }
    }
}

bool is_leftover(const Layout& layout, std::string_view cmdline)
{
    for (const auto& service : roster)
    {
        if (is_command_of(cmdline, layout, service.name)) { return true; }
    }
    for (const auto& service : grandchildren)
    {
        if (is_command_of(cmdline, layout, service.name)) { return true; }
    }
    return false;
}

/// What runs with this prefix although nobody supervises it: a supervisor that was killed, a QEMU without its VMM.
Task<> end_leftovers(Loop& loop, const Global& global, const Layout& layout, Down& down)
{
    for (int round = 0; round < 3; ++round) // a dying one may have started another
    {
        auto left = find_processes([&](std::string_view cmdline) { return is_leftover(layout, cmdline); });
        const auto guests = guests_of(layout);
        left.insert(left.end(), guests.begin(), guests.end());
        if (left.empty()) { co_return; }
        for (const auto& one : left)
        {
            say(global, "ending process " + std::to_string(one.who.pid));
            auto ended = co_await process::terminate(loop, one.who, leftover_grace);
            if (!ended) { warn(ended.error().message); }
            ++down.leftovers;
        }
    }
}

Task<> bring_down(Loop& loop, const Global& global, const Layout& layout, Down& down)
{
    const auto settings = read_settings(layout);
    down.guests = guests_of(layout).size();
    const bool vmm = RunningServices{layout}.find("vmm-local").has_value();
    if (settings && vmm && down.guests > 0) { co_await stop_guests(loop, global, layout, settings->vmm_port); }
    if (const auto supervisor = running_supervisor(layout))
    {
        down.was_up = true;
        auto ended = co_await process::terminate(loop, *supervisor, supervisor_grace);
        if (!ended) { warn(ended.error().message); }
    }
    co_await end_leftovers(loop, global, layout, down);
}

/// Only what dev up creates below the prefix, and the prefix itself when that leaves it empty.
Result<Done> purge(const Layout& layout)
{
    for (const auto& folder : {layout.etc(), layout.lib(), layout.logs(), layout.run()})
    {
        auto removed = state::remove_tree(folder);
        if (!removed) { return std::move(removed).error().within("purge"); }
    }
    for (const char* folder : {"/etc", "/var/lib", "/var/log", "/var", "/run", ""})
    {
        rmdir((layout.prefix + folder).c_str());
    }
    return Done{};
}
} // namespace

int dev_down(const Global& global, const DevDown& wish)
{
    const Layout layout{global.prefix};
    if (access(layout.settings().c_str(), F_OK) != 0)
    {
        say(global, "already down: no development mesh in " + global.prefix);
        if (global.json) { print_document("dev-down", R"({"already_down":true,"guests":0,"purged":false})"); }
        return exit_ok;
    }
    if (wish.purge)
    {
        auto agreed = confirm(global, "remove the mesh in " + global.prefix + " with its keys, apps and logs?");
        if (!agreed) { return print_error(global, agreed.error()); }
        if (!*agreed) { return exit_generic; }
    }
    auto lock = state::FileLock::acquire(layout.up_lock(), milliseconds{60'000});
    if (!lock)
    {
        return print_error(global, std::move(lock).error().within("another dstackup dev up or down is at work"));
    }
    Down down;
    {
        Loop loop;
        loop.run(bring_down(loop, global, layout, down));
    }
    unlink(layout.supervisor_pid().c_str());
    if (wish.purge)
    {
        auto removed = purge(layout);
        if (!removed) { return print_error(global, removed.error()); }
    }
    const bool already = !down.was_up && down.leftovers == 0;
    if (global.json)
    {
        const Json data{{"already_down", already}, {"guests", down.guests}, {"purged", wish.purge}};
        print_document("dev-down", data.dump());
    }
    else if (!global.quiet)
    {
        std::printf("%s%s\n", already ? "already down" : "down", wish.purge ? ", and removed" : "");
    }
    return exit_ok;
}

} // namespace dstack::up
