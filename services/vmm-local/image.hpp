#pragma once
#include "shared/base/result.hpp"
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::vmm
{

/// A guest OS image that may be booted (B.4): every artifact exists, is a regular file and lies inside the directory.
struct Image
{
    std::string name;
    std::string directory;
    std::string version;           ///< metadata.json's, or from the directory name
    std::optional<std::string> cmdline;
    std::string kernel;            ///< absolute paths from here
    std::string initrd;
    std::optional<std::string> rootfs;
    std::optional<std::string> bios;
    bool shared_ro = false;
    bool is_dev = false;
    std::string os_image_hash;     ///< digest.txt when it is hex, else empty
    std::string description;       ///< JSON text of the metadata, for ListImages
};

/// Blocking (a handful of stat calls and two small files). Errors as upstream's: "Invalid image name",
/// "Failed to load image: Kernel does not exist: ...".
Result<Image> load_image(const std::string& image_dir, const std::string& name);

/// Names of the directories that load; a missing directory is "Failed to read image directory".
Result<std::vector<Image>> list_images(const std::string& image_dir);

bool valid_image_name(std::string_view name);

/// "0.6.0.1" is (0,6,0); a component that is no u16 makes the whole version (0,0,0).
struct Version
{
    std::uint16_t major = 0;
    std::uint16_t minor = 0;
    std::uint16_t patch = 0;
    friend auto operator<=>(const Version&, const Version&) = default;
};
Version parse_version(std::string_view text);

/// Reads every listed file and compares: `digest.txt` with sha256sum.txt, and each file that sha256sum.txt lists and that
/// is there. An image that has no sha256sum.txt is not checked. What was checked is remembered by size, inode and mtime.
class ImageDigests
{
  public:
    /// Blocking; one thread at a time. data_loss names the file that differs.
    Result<Done> verify(const Image& image);

  private:
    struct Seen
    {
        std::string signature;
        std::string sha256;
    };
    Result<std::string> digest_of(const std::string& path);
    std::map<std::string, Seen> seen_;
};

} // namespace dstack::vmm
