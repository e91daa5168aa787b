#include "services/dstackup/configs.hpp"
#include "services/dstackup/dev.hpp"
#include "services/dstackup/guest_images.hpp"
#include "services/dstackup/notify_socket.hpp"
#include "services/dstackup/ports.hpp"
#include "services/dstackup/processes.hpp"
#include "shared/process/process.hpp"
#include "shared/state/files.hpp"
#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <poll.h>
#include <unistd.h>

namespace dstack::up
{

namespace
{
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
constexpr long default_timeout_s = 30;
constexpr milliseconds lock_wait{60'000};

Result<std::string> own_program()
{
    std::array<char, 4096> path{};
    const ssize_t length = readlink("/proc/self/exe", path.data(), path.size());
    if (length <= 0) { return errno_error("readlink /proc/self/exe", errno); }
    return std::string{path.data(), static_cast<std::size_t>(length)};
}

std::string program_of(const Settings& settings, const Service& service)
{
    const auto candidates = program_candidates(settings.program, Layout{settings.prefix}, service);
    for (const auto& candidate : candidates)
    {
        if (access(candidate.c_str(), X_OK) == 0) { return candidate; }
    }
    return candidates.front();
}

Result<Done> check_programs(const Settings& settings)
{
    std::string missing;
    const auto look = [&](const Service& service)
    {
        const auto path = program_of(settings, service);
        if (access(path.c_str(), X_OK) != 0) { missing += " dstack-" + std::string{service.name}; }
    };
    for (const auto& service : roster) { look(service); }
    for (const auto& service : grandchildren) { look(service); }
    if (missing.empty()) { return Done{}; }
    return Error{Errc::failed_precondition,
                 "programs of the mesh are missing beside " + settings.program + ":" + missing,
                 "build them: deploy/build",
                 {}};
}

Result<Done> make_layout(const Layout& layout)
{
    std::vector<std::pair<std::string, mode_t>> folders{{layout.etc(), 0755}, {layout.images(), 0755},
                                                        {layout.oci(), 0755}, {layout.dev(), 0755},
                                                        {layout.bus(), 0755}, {layout.logs(), 0755}};
    for (const auto& service : roster) { folders.emplace_back(layout.state(service.name), 0700); }
    for (const auto& service : grandchildren) { folders.emplace_back(layout.state(service.name), 0700); }
    for (const auto& [path, mode] : folders)
    {
        auto made = state::make_dirs(path, mode);
        if (!made)
        {
            return std::move(made)
                .error()
                .within("create the prefix")
                .with_hint("run as root, or choose a --prefix of yours");
        }
    }
    return Done{};
}

struct PortWish
{
    std::optional<std::uint16_t> wish;
    std::uint16_t* port;
    std::string_view flag;
    std::string_view holder; ///< the service that listens there
};

Result<Done> choose_port(const RunningServices& running, const PortWish& wish)
{
    if (wish.wish && *wish.wish == 0)
    {
        auto free = free_port();
        if (!free) { return std::move(free).error(); }
        *wish.port = *free;
        return Done{};
    }
    if (wish.wish) { *wish.port = *wish.wish; }
    if (running.find(wish.holder)) { return Done{}; } // ours: it will be adopted
    return check_port_free(*wish.port, wish.flag);
}

Result<Settings> choose_settings(const Layout& layout, const DevUp& wish)
{
    auto settings = read_settings(layout);
    if (!settings && settings.error().code != Errc::not_found) { return settings; }
    Settings out = settings ? *settings : Settings{};
    out.prefix = layout.prefix;
    auto self = own_program();
    if (!self) { return std::move(self).error(); }
    out.program = *self;
    const char* leases = std::getenv("DSTACK_LEASES");
    if (leases != nullptr && *leases != '\0') { out.leases = leases; }
    const RunningServices running{layout};
    for (const auto& port : {PortWish{wish.auth_port, &out.auth_port, "--auth-port", "auth"},
                             PortWish{wish.vmm_port, &out.vmm_port, "--vmm-port", "vmm-local"},
                             PortWish{wish.kms_port, &out.kms_port, "--kms-port", "kms-local"}})
    {
        auto chosen = choose_port(running, port);
        if (!chosen) { return std::move(chosen).error(); }
    }
    return out;
}

Result<Done> write_configs(const Settings& settings)
{
    const auto files = service_configs(settings, [&](const Service& s) { return program_of(settings, s); });
    for (const auto& file : files)
    {
        const auto text = managed(file.text);
        const auto there = state::read_file(file.path, 1024 * 1024);
        if (there && *there == text) { continue; }
        if (there && !is_unedited(*there))
        {
            warn(file.path + " was edited: it is used as it is (remove it to get the generated one back)");
            continue;
        }
        auto written = state::write_file_atomic(file.path, text, 0644);
        if (!written) { return std::move(written).error(); }
    }
    return state::write_file_atomic(Layout{settings.prefix}.settings(), to_toml(settings), 0644);
}

Result<process::Identity> start_supervisor(const Layout& layout, const Settings& settings, const std::string& notify)
{
    process::Spec spec;
    spec.argv = {settings.program, "dev", "supervise", "--prefix", layout.prefix};
    spec.env = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8",
                "NOTIFY_SOCKET=" + notify};
    spec.cwd = "/";
    spec.out = {process::Sink::Kind::file, layout.log("supervisor")};
    spec.err = spec.out;
    const auto record = [&](const process::Identity& who)
    { return state::write_file_atomic(layout.supervisor_pid(), process::encode(who), 0644); };
    return process::spawn_detached(spec, record);
}

std::string tail_of(const std::string& path)
{
    const auto text = state::read_file(path, 16 * 1024 * 1024);
    if (!text || text->empty()) { return {}; }
    std::string_view all{*text};
    while (all.ends_with('\n')) { all.remove_suffix(1); }
    std::size_t from = all.size();
    for (int lines = 0; lines < 3 && from != std::string_view::npos && from > 0; ++lines)
    {
        from = all.rfind('\n', from - 1);
    }
    return std::string{from == std::string_view::npos ? all : all.substr(from + 1)};
}

Error failed_service(const Layout& layout, const ServiceStatus& service)
{
    Error error{Errc::unavailable,
                std::string{service.name} + " did not get ready (" + service.reason +
                    (service.last_exit.empty() ? "" : ", " + service.last_exit) + ")",
                "read " + layout.log(service.name) + ", mend it, and run dstackup dev up again",
                {}};
    const auto last = tail_of(layout.log(service.name));
    if (!last.empty()) { error.message += "; its last lines:\n" + last; }
    return error;
}

/// Until every service is ready, one was given up, the supervisor ended or the time is over.
Result<MeshStatus> wait_ready(const Layout& layout, const process::Identity& supervisor, int notify_fd,
                              Clock::time_point deadline)
{
    while (true)
    {
        const auto status = read_status(layout);
        const bool current = status && status->supervisor == supervisor;
        if (current && status->all_ready()) { return *status; }
        if (current && status->failed() != nullptr) { return failed_service(layout, *status->failed()); }
        if (!process::alive(supervisor))
        {
            return Error{Errc::unavailable,
                         "the supervisor ended while starting the mesh; its last lines:\n" +
                             tail_of(layout.log("supervisor")),
                         "read " + layout.log("supervisor"),
                         {}};
        }
        if (Clock::now() >= deadline)
        {
            std::string waits;
            for (const auto& service : current ? status->services : std::vector<ServiceStatus>{})
            {
                if (service.phase != Phase::ready)
                {
                    waits += " " + service.name + " (" + std::string{to_string(service.phase)} + ")";
                }
            }
            return Error{Errc::deadline_exceeded,
                         "not ready in time:" + waits,
                         "look at " + layout.logs() + "; dstackup dev status shows the state",
                         {}};
        }
        // The supervisor's datagram wakes at once; a supervisor that was there before has no line to us: look again
        // soon.
        pollfd line{notify_fd, POLLIN, 0};
        if (poll(&line, 1, 50) > 0)
        {
            while (receive_datagram(notify_fd)) {}
        }
    }
}

void print_up(const Global& global, const Settings& settings, const MeshStatus& status, bool already, milliseconds took)
{
    if (global.json)
    {
        nlohmann::json services = nlohmann::json::array();
        for (const auto& s : status.services) { services.push_back({{"name", s.name}, {"pid", s.process.pid}}); }
        const nlohmann::json data{{"prefix", settings.prefix},       {"already_up", already},
                                  {"ready_ms", took.count()},        {"supervisor_pid", status.supervisor.pid},
                                  {"auth_port", settings.auth_port}, {"vmm_port", settings.vmm_port},
                                  {"kms_port", settings.kms_port},   {"bus", Layout{settings.prefix}.bus()},
                                  {"services", std::move(services)}};
        print_document("dev-up", data.dump());
        return;
    }
    const std::string what = already ? "already up" : "up in " + std::to_string(took.count()) + " ms";
    std::printf("%s: %zu services in %s\n", what.c_str(), status.services.size(), settings.prefix.c_str());
    std::printf("  auth  http://127.0.0.1:%u\n  vmm   http://127.0.0.1:%u\n  kms   https://127.0.0.1:%u\n  bus   %s\n",
                settings.auth_port, settings.vmm_port, settings.kms_port, Layout{settings.prefix}.bus().c_str());
}

Result<Done> refuse_other_ports(const Settings& now, const DevUp& wish)
{
    const auto differs = [](const std::optional<std::uint16_t>& wanted, std::uint16_t have)
    { return wanted && *wanted != 0 && *wanted != have; };
    if (differs(wish.auth_port, now.auth_port) || differs(wish.vmm_port, now.vmm_port) ||
        differs(wish.kms_port, now.kms_port))
    {
        return Error{Errc::already_exists,
                     "the mesh in " + now.prefix + " is up with other ports",
                     "dstackup dev down first",
                     {}};
    }
    return Done{};
}

struct Up
{
    Settings settings{};
    MeshStatus status{};
    bool already = false;
};

/// Services whose program was built anew since they were started.
std::vector<process::Identity> outdated(const MeshStatus& status)
{
    std::vector<process::Identity> out;
    for (const auto& service : status.services)
    {
        std::array<char, 4096> path{};
        const std::string link = "/proc/" + std::to_string(service.process.pid) + "/exe";
        const ssize_t length = service.process.pid == 0 ? 0 : readlink(link.c_str(), path.data(), path.size());
        if (length <= 0 || !process::alive(service.process)) { continue; }
        if (std::string_view{path.data(), static_cast<std::size_t>(length)}.ends_with(" (deleted)"))
        {
            out.push_back(service.process);
        }
    }
    return out;
}

/// Ends them; the supervisor starts the new programs. Guests run on, as with any restart.
void restart(const std::vector<process::Identity>& old, Clock::time_point deadline)
{
    for (const auto& who : old)
    {
        if (process::alive(who)) { kill(who.pid, SIGTERM); }
    }
    const auto gone = [&]
    { return std::none_of(old.begin(), old.end(), [](const auto& who) { return process::alive(who); }); };
    while (!gone() && Clock::now() < deadline) { poll(nullptr, 0, 5); }
}

/// Until the supervisor has seen the end of all these.
void wait_seen(const Layout& layout, const std::vector<process::Identity>& old, Clock::time_point deadline)
{
    while (Clock::now() < deadline)
    {
        const auto status = read_status(layout);
        const auto is_old = [&](const ServiceStatus& s)
        { return std::find(old.begin(), old.end(), s.process) != old.end(); };
        if (status && std::none_of(status->services.begin(), status->services.end(), is_old)) { return; }
        poll(nullptr, 0, 5);
    }
}

/// The supervisor runs: nothing to do, or only to try again what it gave up, and to restart what was built anew.
Result<Up> join_running(const Global& global, const Layout& layout, const DevUp& wish,
                        const process::Identity& supervisor, Clock::time_point deadline)
{
    auto settings = read_settings(layout);
    if (!settings) { return std::move(settings).error(); }
    const auto same = refuse_other_ports(*settings, wish);
    if (!same) { return same.error(); }
    auto status = read_status(layout);
    const auto old = status ? outdated(*status) : std::vector<process::Identity>{};
    if (!old.empty())
    {
        say(global, "restarting " + std::to_string(old.size()) + " services whose programs were built anew");
        restart(old, deadline);
        wait_seen(layout, old, deadline);
        status = read_status(layout);
    }
    else if (status && status->all_ready()) { return Up{*settings, *status, true}; }
    if (status && status->failed() != nullptr)
    {
        kill(supervisor.pid, SIGHUP); // try again
        const auto seen = Clock::now() + milliseconds{1'000};
        while (status && status->failed() != nullptr && Clock::now() < seen)
        {
            poll(nullptr, 0, 5);
            status = read_status(layout);
        }
    }
    auto ready = wait_ready(layout, supervisor, -1, deadline);
    if (!ready) { return std::move(ready).error(); }
    return Up{*settings, *ready, false};
}

Result<Up> bring_up(const Global& global, const Layout& layout, const DevUp& wish, Clock::time_point deadline)
{
    auto made = make_layout(layout);
    if (!made) { return std::move(made).error(); }
    auto lock = state::FileLock::acquire(layout.up_lock(), lock_wait);
    if (!lock) { return std::move(lock).error().within("another dstackup dev up or down is at work"); }
    if (const auto running = running_supervisor(layout))
    {
        return join_running(global, layout, wish, *running, deadline);
    }

    auto settings = choose_settings(layout, wish);
    if (!settings) { return std::move(settings).error(); }
    auto there = check_programs(*settings);
    if (!there) { return std::move(there).error(); }
    auto written = write_configs(*settings);
    if (!written) { return std::move(written).error(); }
    auto policy = create_policy(layout, image_digests(layout));
    if (!policy) { return std::move(policy).error(); }

    const std::string notify = layout.dev() + "/up.sock";
    auto line = bind_notify_socket(notify);
    if (!line) { return std::move(line).error(); }
    auto supervisor = start_supervisor(layout, *settings, notify);
    auto ready =
        supervisor ? wait_ready(layout, *supervisor, line->get(), deadline) : Result<MeshStatus>{supervisor.error()};
    unlink(notify.c_str());
    if (!ready) { return std::move(ready).error(); }
    return Up{*settings, *ready, false};
}
} // namespace

int dev_up(const Global& global, const DevUp& wish)
{
    const Layout layout{global.prefix};
    const auto began = Clock::now();
    const auto deadline = began + std::chrono::seconds{global.timeout_s > 0 ? global.timeout_s : default_timeout_s};
    auto up = bring_up(global, layout, wish, deadline);
    if (!up) { return print_error(global, up.error()); }
    auto allowed = allow_new_images(layout, image_digests(layout));
    if (!allowed) { return print_error(global, allowed.error()); }
    print_up(global, up->settings, up->status, up->already,
             std::chrono::duration_cast<milliseconds>(Clock::now() - began));
    return exit_ok;
}

} // namespace dstack::up
