#pragma once
#include "shared/base/result.hpp"
#include <cstdint>
#include <string_view>

namespace dstack::up
{

/// A port on 127.0.0.1 that nobody holds at this moment.
Result<std::uint16_t> free_port();
/// already_exists when somebody holds it; `flag` is what chooses another one.
Result<Done> check_port_free(std::uint16_t port, std::string_view flag);

} // namespace dstack::up
