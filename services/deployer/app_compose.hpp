#pragma once
#include "shared/base/result.hpp"
#include <string>
#include <string_view>

namespace dstack::deployer
{

struct AppDocument
{
    std::string text;         ///< upstream's app-compose (dstack-protocol.md B.5), pretty JSON with two spaces
    std::string compose_hash; ///< SHA-256 of the exact bytes, 64 hex
    std::string app_id;       ///< its first 40 hex
};

/// The same inputs give the same bytes for ever: the hash is what the policy allows. `compose` must be UTF-8.
AppDocument build_app_document(std::string_view name, std::string_view compose, bool kms);

} // namespace dstack::deployer
