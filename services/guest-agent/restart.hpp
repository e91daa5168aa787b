#pragma once
#include "shared/compose/compose.hpp"
#include <chrono>
#include <optional>

namespace dstack::guest
{

/// How long to wait before the container is started again; nullopt: it stays ended. `attempts` counts the starts since
/// it last ran for ten seconds. 100 ms, doubled each time, at most 30 s.
std::optional<std::chrono::milliseconds> restart_delay(const compose::Restart& restart, bool failed, unsigned attempts);

/// After this long a container counts as having run.
inline constexpr std::chrono::seconds settled_after{10};

} // namespace dstack::guest
