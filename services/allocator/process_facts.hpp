#pragma once
#include "services/allocator/plan.hpp"

namespace dstack::allocator
{

// What the files of /proc and the configurations of other VMMs say. All of it is written by others: what is not understood
// is left out, and nothing is trusted to be short, printable or true.

/// "guest-cid=1000" in a command line; arguments are separated by NUL as in /proc/PID/cmdline. A value that is no CID is left out.
std::vector<std::uint32_t> cids_of_command_line(std::string_view command_line);

/// QEMU's "hostfwd=tcp:127.0.0.1:18000-:80" (and "hostfwd=udp::53-:53").
std::vector<Resource> forwards_of_command_line(std::string_view command_line);

/// For a terminal or a log: blanks for NULs, other bytes that are not printable ASCII as '?', at most `limit` characters.
std::string printable_command(std::string_view command_line, std::size_t limit);

/// The systemd unit in /proc/PID/cgroup ("nginx.service"), else the control group's path; empty for the root.
std::string unit_of_cgroup(std::string_view text);

/// The name of the program that a command line starts: "dstack-vmm" of "/usr/bin/dstack-vmm\0-c\0...".
std::string_view program_of_command_line(std::string_view command_line);

/// Of upstream's dstack-vmm: the file behind -c or --config; empty when there is none.
std::string config_of_command_line(std::string_view command_line);

/// What upstream's vmm.toml (dstack-protocol B.17) takes for itself; the defaults are upstream's.
struct VmmConfig
{
    std::uint32_t cid_start = 1000;
    std::uint32_t cid_pool_size = 1000;
    std::uint32_t host_api_port = 10'000;
    /// The last CID of the pool; not beyond the last one there is.
    std::uint32_t cid_last() const;
};
/// Later texts win, as the files do that upstream reads one after the other.
VmmConfig parse_vmm_config(const std::vector<std::string>& texts);

/// The static CIDs in a libvirt domain (<cid ... address='5'/> inside <vsock>).
std::vector<std::uint32_t> cids_of_libvirt_domain(std::string_view xml);

} // namespace dstack::allocator
