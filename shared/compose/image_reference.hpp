#pragma once
#include "shared/base/result.hpp"
#include <string>
#include <string_view>

namespace dstack::compose
{

/// The full form of a container image's name: busybox -> docker.io/library/busybox:latest, as container tools do.
/// A digest stays: busybox@sha256:<64 hex> -> docker.io/library/busybox@sha256:<64 hex>.
Result<std::string> normalize_image(std::string_view reference);

} // namespace dstack::compose
