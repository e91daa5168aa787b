#pragma once
#include "services/deployer/vmm_wire.hpp"
#include "shared/base/result.hpp"
#include <chrono>
#include <string>
#include <string_view>

namespace dstack::deployer
{

struct Config
{
    std::string bus_directory = "/run/dstack/bus";
    std::string state_dir = "/var/lib/dstack/deployer"; ///< created when missing; holds deployer.db
    std::string vmm_url = "http://127.0.0.1:9080";      ///< or "unix:/run/dstack/vmm.sock:"
    std::string vmm_token_file;                         ///< empty: the VMM asks for no token
    VmDefaults vm;
    std::chrono::milliseconds observe{5'000};    ///< how often every VM is looked at when nothing happens
    std::chrono::milliseconds vmm_patience{3'000}; ///< how long a refused connection to the VMM is tried again
};

Result<Config> parse_config(std::string_view toml);

} // namespace dstack::deployer
