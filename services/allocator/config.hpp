#pragma once
#include "shared/base/result.hpp"
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace dstack::allocator
{

/// Where the leases of all installs of a host are, unless the configuration says otherwise.
inline constexpr std::string_view host_wide_leases = "/var/lib/dstack-host/leases.db";

struct Config
{
    std::string state_dir; ///< this install's own: its id, and its leases where the host-wide database cannot be had
    std::string leases;    ///< the database that all installs of the host share; empty: host_wide_leases, or state_dir/leases.db for want of rights
    std::uint32_t cid_first = 1000;   ///< vsock CIDs are granted from here ...
    std::uint32_t cid_last = 65'535;  ///< ... to here, both included; wide enough to leave upstream VMMs their pools
    std::uint16_t port_first = 18000;
    std::uint16_t port_last =
        19999; ///< for wishes without a number; below ip_local_port_range, within upstream's 1-20000
    std::uint32_t vsock_first = 20'000; ///< vsock ports of the host
    std::uint32_t vsock_last = 29'999;
    bool privileged_ports = false;         ///< ports below ip_unprivileged_port_start need no flag
    std::chrono::milliseconds sweep{1000}; ///< how often reservations that ran out are given back
    std::chrono::milliseconds watch{5000}; ///< how often leases are compared with what the kernel shows
    std::chrono::milliseconds leak_check{60'000}; ///< how often the deployer is asked which apps there are
    std::uint32_t ports_per_app = 256;
    std::uint32_t cids_per_app = 64;
    std::uint32_t leases_per_host = 200'000;
    std::string bus_directory;
};

Result<Config> parse_config(std::string_view toml);

} // namespace dstack::allocator
