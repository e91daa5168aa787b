#pragma once
#include "services/guest-agent/boot_plan.hpp"
#include "services/guest-agent/image_store.hpp"

namespace dstack::guest
{

/// Finds the host share among the virtio disks, reads it with the limits of dstack-protocol.md C.3 (no symbolic links),
/// and unmounts it again. Blocking.
Result<Share> read_host_share();

/// Mounts the disk that holds container images at `store_mount` and reads its index; no such disk: no images. Blocking.
Result<std::vector<StoredImage>> open_image_store();
inline constexpr std::string_view store_mount = "/run/dstack/store";

/// A file below `root`, at most `max_bytes`; no symbolic link as the last part. not_found when it is not there.
Result<std::string> read_bounded(const std::string& path, std::size_t max_bytes);

} // namespace dstack::guest
