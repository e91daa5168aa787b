#pragma once
#include <cstdint>
#include <set>
#include <string_view>

namespace dstack::guest
{

/// The ports with a TCP listener in a text of /proc/net/tcp or tcp6 (proc_net(5)). Looking there, unlike connecting,
/// leaves no trace in the app's log.
std::set<std::uint16_t> listening_ports(std::string_view proc_net_tcp);

/// Whether a process that has this /proc/PID/status catches SIGTERM. PID 1 of a container that does not never hears it
/// (pid_namespaces(7)).
bool catches_sigterm(std::string_view proc_status);

} // namespace dstack::guest
