#pragma once
#include "shared/base/result.hpp"
#include <string>
#include <string_view>
#include <vector>

namespace dstack::guest
{

struct ImageConfig
{
    std::vector<std::string> entrypoint{};
    std::vector<std::string> cmd{};
    std::vector<std::string> env{}; ///< NAME=value
    std::string workdir{};
    std::string user{};
};

struct StoredImage
{
    std::string folder{}; ///< in the store: rootfs/ lies below it
    std::string reference{};
    std::string manifest_digest{};
    ImageConfig config{};
};

/// The index of a store disk (deploy/guest-image/README.md). Folder names that could leave the store are refused.
Result<std::vector<StoredImage>> parse_store_index(std::string_view json);
inline constexpr std::string_view store_index_name = "dstack-store.json";
inline constexpr std::size_t max_store_index_bytes = 4 * 1024 * 1024;

/// By full reference; one with a digest matches by digest and repository. not_found says which images there are.
Result<StoredImage> find_image(const std::vector<StoredImage>& images, std::string_view reference);

} // namespace dstack::guest
