#pragma once
#include "shared/base/result.hpp"
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace dstack::allocator
{

struct Config
{
    std::string state_dir;          ///< holds leases.db; created when missing
    std::uint32_t cid_first = 1000; ///< vsock CIDs are granted from here ...
    std::uint32_t cid_last = 1999;  ///< ... to here, both included
    std::uint16_t port_first = 18000;
    std::uint16_t port_last =
        19999; ///< for wishes without a number; below ip_local_port_range, within upstream's 1-20000
    std::chrono::milliseconds sweep{1000}; ///< how often reservations that ran out are given back
    std::string bus_directory;
};

Result<Config> parse_config(std::string_view toml);

} // namespace dstack::allocator
