#pragma once
#include "shared/base/result.hpp"
#include <optional>
#include <string>
#include <string_view>

namespace dstack::auth
{

// Changes of a policy document, from text to text, written with sorted keys: the same policy is the same text. nullopt:
// the document says so already. invalid_argument for a bad hash; failed_precondition for a document that is not valid:
// it is never repaired by guessing.

/// Without `compose_hash` in the list of the app it is added; a new app may boot on any device, as upstream's `dstack
/// deploy` registers it.
Result<std::optional<std::string>> allow_app(std::string_view policy, std::string_view app_id,
                                             std::string_view compose_hash);
/// An empty `compose_hash` removes the whole app. So does taking back the last hash, unless devices are listed for the app.
Result<std::optional<std::string>> revoke_app(std::string_view policy, std::string_view app_id,
                                              std::string_view compose_hash);
Result<std::optional<std::string>> allow_image(std::string_view policy, std::string_view os_image_hash);

/// A policy that allows nothing: what `create_policy` writes.
std::string blank_policy();

} // namespace dstack::auth
