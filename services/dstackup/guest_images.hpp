#pragma once
#include "services/dstackup/layout.hpp"
#include "shared/base/result.hpp"
#include <string>
#include <vector>

namespace dstack::up
{

/// The digests (64 hex, from digest.txt) of the guest OS images in the prefix, sorted.
std::vector<std::string> image_digests(const Layout& layout);

/// A first policy: the guest images of this prefix may boot, no app may have keys until it is deployed.
/// One that is there is never touched.
Result<Done> create_policy(const Layout& layout, const std::vector<std::string>& digests);

/// Asks the auth process to allow the images that came after its policy was written.
Result<Done> allow_new_images(const Layout& layout, const std::vector<std::string>& digests);

} // namespace dstack::up
