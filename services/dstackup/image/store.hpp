#pragma once
#include "services/dstackup/image/oci.hpp"
#include <functional>

namespace dstack::image
{

/// The container images that guests may run: FOLDER/store/<image>/{image.json,rootfs/} is what we keep,
/// FOLDER/store.squashfs is what guests get as a read-only disk (deploy/guest-image/README.md has the format).
class Store
{
  public:
    explicit Store(std::string folder) : folder_(std::move(folder)) {}
    std::string disk() const { return folder_ + "/store.squashfs"; }

    /// In the order of their references. Folders that hold no image are left out.
    Result<std::vector<StoredImage>> list() const;
    /// Replaces or adds one image: `fill` is given the empty folder for the root file system. Nothing changes on an
    /// error. False when the same manifest was there already under this name.
    Result<bool> put(const StoredImage& image, const std::function<Result<Done>(const std::string& rootfs)>& fill);
    /// Writes the disk anew from what the store holds; guests that run keep the old one.
    Result<Done> pack() const;
    bool packed() const;

  private:
    std::string root() const { return folder_ + "/store"; }
    std::string folder_;
};

} // namespace dstack::image
