#pragma once
#include "bus/schema/deploy.hpp"
#include "shared/base/result.hpp"
#include <string_view>

namespace dstack::deployer
{

inline constexpr std::size_t max_compose_bytes = 256 * 1024;
inline constexpr std::size_t max_name_bytes = 64;
inline constexpr std::size_t max_ports = 32;

/// Parses a compose file and says what is wrong with it (shared/compose).
using ComposeCheck = Result<Done> (*)(std::string_view text);

/// Everything that can be refused before anything is asked or changed. The name follows the VMM's rule (B.3).
Result<Done> validate(const schema::DeployCreate& request, ComposeCheck check_compose);

/// Strict UTF-8 (RFC 3629): what JSON can carry without being changed.
bool is_utf8(std::string_view text);

} // namespace dstack::deployer
