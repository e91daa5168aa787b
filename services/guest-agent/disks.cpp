#include "services/guest-agent/disks.hpp"

namespace dstack::guest
{

DiskKind disk_kind(std::span<const char> head)
{
    if (head.size() < disk_head_bytes) { return DiskKind::other; }
    const std::string_view bytes{head.data(), head.size()};
    if (bytes.starts_with("hsqs")) { return DiskKind::squashfs; } // little-endian 0x73717368
    // FAT32 boot sector: label at 71, "FAT32   " at 82, signature at 510
    const bool fat = bytes.substr(82, 8) == "FAT32   " && bytes.substr(510, 2) == "\x55\xaa";
    if (fat && bytes.substr(71, share_label.size()) == share_label) { return DiskKind::host_share; }
    return DiskKind::other;
}

} // namespace dstack::guest
