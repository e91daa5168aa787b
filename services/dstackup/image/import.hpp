#pragma once
#include "services/dstackup/image/store.hpp"
#include "services/dstackup/image/unpack.hpp"

namespace dstack::image
{

struct Imported
{
    std::string reference{};
    std::string manifest_digest{};
    bool already = false; ///< the store had exactly this
};

/// Puts the images of an OCI layout (a directory or a tar archive) or a docker-archive into the store; `name` replaces
/// the image's own when there is one image. Every blob is checked against its digest before the store changes. The disk
/// is not packed here.
Result<std::vector<Imported>> import_images(Store& store, const std::string& path, const std::string& name,
                                            Limits limits);

} // namespace dstack::image
