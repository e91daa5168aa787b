#pragma once
#include "shared/base/result.hpp"
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dstack::vmm
{

struct ShareFile
{
    std::string name; ///< ASCII, at most 255 characters: ".sys-config.json"
    std::string bytes;
};

/// A FAT32 file system of `size_bytes` with these files in its root directory, written sparsely: only what is not zero
/// takes space and time. `path` is created with mode 0600 or replaced; made durable by the caller if at all (it is made
/// anew at each start). resource_exhausted when the files or the host's disk do not have the room.
Result<Done> write_fat32(const std::string& path, std::string_view label, std::uint64_t size_bytes,
                         const std::vector<ShareFile>& files);

constexpr std::uint64_t share_size_bytes = 128ULL * 1024 * 1024;
constexpr std::string_view share_label = "DSTACKSHR";

} // namespace dstack::vmm
