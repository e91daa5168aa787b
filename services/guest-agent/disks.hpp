#pragma once
#include <span>
#include <string_view>

namespace dstack::guest
{

enum class DiskKind
{
    host_share, ///< FAT32 labelled DSTACKSHR: upstream's `vhd` share mode
    squashfs,   ///< the root, or a store of container images
    other,
};

/// Told from the first bytes, so the order of the disks does not matter.
inline constexpr std::size_t disk_head_bytes = 512;
DiskKind disk_kind(std::span<const char> head);
inline constexpr std::string_view share_label = "DSTACKSHR  "; ///< padded to the 11 bytes of a FAT label

} // namespace dstack::guest
