#pragma once
#include "shared/base/result.hpp"
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace dstack::auth
{

// Changes of a policy document, from text to text, written with sorted keys: the same policy is the same text. nullopt:
// the document says so already. invalid_argument for a bad hash; failed_precondition for a document that is not valid:
// it is never repaired by guessing.

/// How long something is allowed, and why. An entry that ends is an object in its list; one without an end stays the plain
/// value that every upstream tool reads, and its reason is in the ledger only.
struct Grant
{
    std::uint64_t expires_ms = 0; ///< unix time; 0: without an end
    std::string reason{};         ///< printable ASCII, at most 1000 characters
};

/// Without `compose_hash` in the list of the app it is added; a new app may boot on any device, as upstream's `dstack
/// deploy` registers it. What is allowed for longer than `grant` stays so.
Result<std::optional<std::string>> allow_app(std::string_view policy, std::string_view app_id,
                                             std::string_view compose_hash, const Grant& grant = {});
/// An empty `compose_hash` removes the whole app. So does taking back the last hash, unless devices are listed for the app.
Result<std::optional<std::string>> revoke_app(std::string_view policy, std::string_view app_id,
                                              std::string_view compose_hash);
Result<std::optional<std::string>> allow_image(std::string_view policy, std::string_view os_image_hash,
                                               const Grant& grant = {});
Result<std::optional<std::string>> revoke_image(std::string_view policy, std::string_view os_image_hash);
/// The whole document, as `text` has it; refused unless it is a policy, and unless the SHA-256 of `policy` is
/// `expected_hash` (64 hex; empty: whatever is there).
Result<std::optional<std::string>> set_policy(std::string_view policy, std::string_view text,
                                              std::string_view expected_hash);

/// A policy that allows nothing: what `create_policy` writes.
std::string blank_policy();

} // namespace dstack::auth
