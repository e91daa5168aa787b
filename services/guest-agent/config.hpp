#pragma once
#include "shared/base/result.hpp"
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace dstack::guest
{

struct Config
{
    std::string listen{"0.0.0.0"}; ///< of the Info and Version RPCs
    std::uint16_t port = 8090;
    std::chrono::milliseconds kms_timeout{60'000};   ///< all KMS URLs together, with retries while none answers
    std::chrono::milliseconds ready_timeout{60'000}; ///< for the published ports of all services
    std::chrono::milliseconds stop_grace{10'000};    ///< from SIGTERM to SIGKILL, for all containers together
};

Result<Config> parse_config(std::string_view toml);

} // namespace dstack::guest
