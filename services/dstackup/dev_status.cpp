#include "services/dstackup/dev.hpp"
#include "services/dstackup/processes.hpp"
#include "services/dstackup/supervisor.hpp"
#include "shared/state/files.hpp"
#include <algorithm>
#include <array>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>

namespace dstack::up
{

namespace
{
using Json = nlohmann::json;

std::uint64_t unix_ms()
{
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1000 + static_cast<std::uint64_t>(now.tv_nsec) / 1'000'000;
}

std::string rfc3339(std::uint64_t ms)
{
    const auto seconds = static_cast<std::time_t>(ms / 1000);
    std::tm parts{};
    gmtime_r(&seconds, &parts);
    std::array<char, 40> text{};
    const auto length = std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%S", &parts);
    std::array<char, 8> fraction{};
    std::snprintf(fraction.data(), fraction.size(), ".%03uZ", static_cast<unsigned>(ms % 1000));
    return std::string{text.data(), length} + fraction.data();
}

/// What is true now: a record whose process is gone, because nobody was there to write it, says so.
void observe(MeshStatus& status, bool supervised)
{
    for (auto& service : status.services)
    {
        if (service.process.pid == 0 || process::alive(service.process)) { continue; }
        service.process = {};
        const bool said_to_run = service.phase == Phase::ready || service.phase == Phase::starting;
        if (!supervised) { service.phase = Phase::stopped; }
        else if (said_to_run) { service.phase = Phase::backoff; } // the supervisor is about to notice
    }
}

struct Row
{
    std::string name{};
    process::Identity who{};
    std::string state{};
    std::string since{};
    std::string note{};
    std::uint64_t restarts = 0;
    std::uint64_t resident = 0;
    std::string last_exit{};
    std::string reason{};
};

std::vector<Row> rows_of(const Layout& layout, const MeshStatus& status)
{
    std::vector<Row> out;
    for (const auto& service : status.services)
    {
        const auto& who = service.process;
        out.push_back({service.name, who, std::string{to_string(service.phase)}, rfc3339(service.since_ms),
                       service.text, service.restarts, who.pid == 0 ? 0 : resident_bytes(who.pid), service.last_exit,
                       service.reason});
    }
    const RunningServices running{layout};
    for (const auto& service : grandchildren)
    {
        const auto who = running.find(service.name);
        if (!who) { continue; }
        Row row{std::string{service.name}, *who, "running", {}, {}, 0, resident_bytes(who->pid), {}, {}};
        row.note = "started by kms-supervisor";
        out.push_back(std::move(row));
    }
    return out;
}

void print_rows(const std::vector<Row>& rows, const MeshStatus& status, const Settings& settings, bool supervised)
{
    std::printf("%-15s %8s  %-9s %8s %8s %8s  %s\n", "SERVICE", "PID", "STATE", "SINCE", "RESTARTS", "RSS", "NOTE");
    std::uint64_t total = 0;
    for (const auto& row : rows)
    {
        const auto* known = status.find(row.name);
        const std::string since =
            known == nullptr ? "-" : short_duration(unix_ms() - std::min(unix_ms(), known->since_ms));
        std::string note = row.reason.empty() ? std::string{} : row.reason + ": ";
        note += row.last_exit.empty() ? row.note : "last exit: " + row.last_exit;
        const std::string pid = row.who.pid == 0 ? "-" : std::to_string(row.who.pid);
        const std::string mib = row.resident == 0 ? "-" : std::to_string(row.resident / 1048576) + " MiB";
        std::printf("%-15s %8s  %-9s %8s %8llu %8s  %s\n", row.name.c_str(), pid.c_str(), row.state.c_str(),
                    since.c_str(), static_cast<unsigned long long>(row.restarts), mib.c_str(), note.c_str());
        total += row.resident;
    }
    std::printf("%zu processes, %llu MiB resident; prefix %s\n", rows.size(),
                static_cast<unsigned long long>(total / 1048576), settings.prefix.c_str());
    std::printf("auth http://127.0.0.1:%u, vmm http://127.0.0.1:%u, kms https://127.0.0.1:%u\n", settings.auth_port,
                settings.vmm_port, settings.kms_port);
    if (!supervised)
    {
        std::fprintf(stderr, "the supervisor does not run: nothing restarts what dies\n  next: dstackup dev up\n");
    }
}

Json json_of(const std::vector<Row>& rows, const MeshStatus& status, const Settings& settings, bool supervised)
{
    Json services = Json::array();
    for (const auto& row : rows)
    {
        services.push_back({{"name", row.name},
                            {"pid", row.who.pid == 0 ? Json{} : Json(row.who.pid)},
                            {"state", row.state},
                            {"since", row.since.empty() ? Json{} : Json(row.since)},
                            {"restarts", row.restarts},
                            {"last_exit", row.last_exit},
                            {"reason", row.reason},
                            {"note", row.note},
                            {"rss_bytes", row.resident}});
    }
    return {{"prefix", settings.prefix},
            {"supervisor_pid", supervised ? Json(status.supervisor.pid) : Json{}},
            {"ready", status.all_ready() && supervised},
            {"healthy", status.healthy() && supervised},
            {"auth_port", settings.auth_port},
            {"vmm_port", settings.vmm_port},
            {"kms_port", settings.kms_port},
            {"services", std::move(services)}};
}
} // namespace

std::optional<process::Identity> running_supervisor(const Layout& layout)
{
    const auto text = state::read_file(layout.supervisor_pid(), 4096);
    if (!text) { return std::nullopt; }
    auto who = process::decode(*text);
    if (!who || !process::alive(*who)) { return std::nullopt; }
    return std::move(*who);
}

Result<MeshStatus> read_status(const Layout& layout)
{
    const auto text = state::read_file(layout.status(), 1024 * 1024);
    if (!text) { return text.error(); }
    return decode_status(*text);
}

Result<Settings> read_settings(const Layout& layout)
{
    const auto text = state::read_file(layout.settings(), 64 * 1024);
    if (!text) { return text.error(); }
    auto settings = parse_settings(*text);
    if (!settings) { return std::move(settings).error().within(layout.settings()); }
    return settings;
}

int dev_status(const Global& global)
{
    const Layout layout{global.prefix};
    const auto settings = read_settings(layout);
    if (!settings && settings.error().code == Errc::not_found)
    {
        return print_error(global, {Errc::not_found, "no development mesh in " + global.prefix, "dstackup dev up", {}});
    }
    if (!settings) { return print_error(global, settings.error()); }
    const bool supervised = running_supervisor(layout).has_value();
    auto status = read_status(layout);
    if (!status && status.error().code != Errc::not_found) { return print_error(global, status.error()); }
    MeshStatus now = status ? *status : MeshStatus{};
    observe(now, supervised);
    const auto rows = rows_of(layout, now);
    if (global.json) { print_document("dev-status", json_of(rows, now, *settings, supervised).dump()); }
    else { print_rows(rows, now, *settings, supervised); }
    if (supervised) { return now.healthy() ? exit_ok : exit_unhealthy; }
    const bool any =
        std::any_of(now.services.begin(), now.services.end(), [](const auto& s) { return s.process.pid != 0; });
    return any ? exit_unhealthy : exit_not_found;
}

int dev_supervise(const Global& global)
{
    std::string config = Layout{global.prefix}.settings();
    std::string name = "dstackup";
    std::string flag = "--config";
    char* argv[] = {name.data(), flag.data(), config.data(), nullptr};
    const auto prepare = [](std::string_view toml) -> Result<Serve>
    {
        auto settings = parse_settings(toml);
        if (!settings) { return std::move(settings).error(); }
        return Serve{[settings = std::move(*settings)](Daemon& daemon) { return supervise(daemon, settings); }};
    };
    return run_daemon(3, argv, {"dstackup-supervise", "starts and keeps the development mesh", "/etc/dstack/dev.toml"},
                      prepare);
}

} // namespace dstack::up
