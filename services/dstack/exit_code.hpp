#pragma once
#include "shared/base/result.hpp"

namespace dstack::cli
{

// The command line contract's exit codes; the table is in README.md.
inline constexpr int exit_ok = 0;
inline constexpr int exit_generic = 1;
inline constexpr int exit_usage = 2;
inline constexpr int exit_not_found = 3;   ///< or not running
inline constexpr int exit_permission = 4;
inline constexpr int exit_conflict = 5;
inline constexpr int exit_incomplete = 6;  ///< a gap
inline constexpr int exit_precondition = 7;
inline constexpr int exit_timeout = 8;
inline constexpr int exit_denied = 9;
inline constexpr int exit_unhealthy = 10;
inline constexpr int exit_changes = 11;    ///< with --exit-code

int exit_code(Errc code);
/// Of a deploy or start that failed: denied by policy, or a guest that did not come up, have codes of their own.
int exit_code_of_operation(Errc code, bool denied, std::string_view step);

} // namespace dstack::cli
