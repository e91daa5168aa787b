#pragma once
#include <string_view>

namespace dstack::cli
{

/// SIGINT and SIGTERM end the program with 128 + their number.
void leave_on_signals();
/// What is said on stderr when that happens from now on: what goes on without this program. Cut at 500 bytes.
void say_when_interrupted(std::string_view line);

} // namespace dstack::cli
