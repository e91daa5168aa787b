#pragma once
#include <array>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::up
{

/// Where things lie below one prefix.
struct Layout
{
    std::string prefix; ///< absolute, without a slash at the end

    std::string etc() const { return prefix + "/etc/dstack"; }
    std::string config(std::string_view service) const { return etc() + "/" + std::string{service} + ".toml"; }
    std::string lib() const { return prefix + "/var/lib/dstack"; }
    std::string state(std::string_view service) const { return lib() + "/" + std::string{service}; }
    std::string images() const { return lib() + "/images"; }
    std::string policy() const { return etc() + "/auth-allowlist.json"; }
    std::string oci() const { return lib() + "/oci"; }
    std::string run() const { return prefix + "/run/dstack"; }
    std::string bus() const { return run() + "/bus"; }
    std::string logs() const { return prefix + "/var/log/dstack"; }
    std::string log(std::string_view program) const { return logs() + "/" + std::string{program} + ".log"; }
    /// What the development supervisor keeps while it runs; gone or stale after a reboot, which is fine.
    std::string dev() const { return run() + "/dev"; }
    std::string supervisor_pid() const { return dev() + "/supervisor.pid"; }
    std::string supervisor_lock() const { return dev() + "/supervisor.lock"; }
    std::string up_lock() const { return dev() + "/up.lock"; }
    std::string status() const { return dev() + "/status.json"; }
    std::string notify_socket() const { return dev() + "/notify.sock"; }
    /// The choices of `dev up` that outlive it: ports, paths.
    std::string settings() const { return etc() + "/dev.toml"; }
};

/// One program of the mesh that the supervisor starts by itself.
struct Service
{
    std::string_view name;   ///< on the bus, of its config and of its log
    std::string_view folder; ///< in the build tree
    bool first = false;      ///< started before the others, which need it to get ready
};

/// In the order in which they are shown. kms-local is not here: the kms-supervisor starts it.
inline constexpr std::array<Service, 7> roster{{
    {"bus", "bus/broker", true},
    {"auth", "services/auth"},
    {"allocator", "services/allocator"},
    {"logs", "services/logs"},
    {"deployer", "services/deployer"},
    {"kms-supervisor", "services/kms-supervisor"},
    {"vmm-local", "services/vmm-local"},
}};

/// Programs that members of the roster start; they are ours to end when they are left over.
inline constexpr std::array<Service, 1> grandchildren{{{"kms-local", "services/kms-local"}}};

/// Where the program may be, best first: the build tree that `self` (our own executable) is part of, an installation
/// beside it, the prefix.
std::vector<std::string> program_candidates(std::string_view self, const Layout& layout, const Service& service);

/// Is this the command line (argv, each ended by a zero byte, as in /proc/PID/cmdline) of `service` of this prefix?
bool is_command_of(std::string_view cmdline, const Layout& layout, std::string_view service);

/// Does any argument name a file below `folder`? Finds the QEMUs whose work directories are ours.
bool mentions_below(std::string_view cmdline, std::string_view folder);

} // namespace dstack::up
