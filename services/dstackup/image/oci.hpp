#pragma once
#include "shared/base/result.hpp"
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::image
{

/// The parts of the OCI image format that a guest needs (opencontainers/image-spec 1.1), from untrusted JSON.

struct Descriptor
{
    std::string digest{}; ///< "sha256:<64 hex>", checked
    std::uint64_t size = 0;
    std::string media_type{};
    std::string reference{};    ///< from the annotations, may be empty
    std::string os{};           ///< of the platform, may be empty
    std::string architecture{}; ///< likewise
};

/// index.json, or an index blob: what it points at.
Result<std::vector<Descriptor>> parse_index(std::string_view json);

/// A document that is a manifest (`layers`) or an index of manifests (`manifests`).
struct Manifest
{
    std::vector<Descriptor> manifests{}; ///< not empty: an index, go on with one of them
    Descriptor config{};
    std::vector<Descriptor> layers{};
};
Result<Manifest> parse_manifest(std::string_view json);

struct RunConfig
{
    std::vector<std::string> entrypoint{};
    std::vector<std::string> cmd{};
    std::vector<std::string> env{};
    std::string workdir = "/";
    std::string user{};
    std::vector<std::string> diff_ids{}; ///< digests of the uncompressed layers
};
Result<RunConfig> parse_run_config(std::string_view json);

/// docker-archive: one image of manifest.json.
struct DockerImage
{
    std::string config{};              ///< name of a member
    std::vector<std::string> tags{};   ///< "busybox:1.36"
    std::vector<std::string> layers{}; ///< names of members
};
Result<std::vector<DockerImage>> parse_docker_manifest(std::string_view json);

/// "busybox" is docker.io/library/busybox:latest, as container tools read it.
std::string normalize_reference(std::string_view name);
/// A reference that can be one: no blanks or control bytes, at most 255.
Result<Done> check_reference(std::string_view name);
/// The name of an image's folder in the store: readable, and different for different references.
std::string folder_of(std::string_view reference);

/// image.json of the store (deploy/guest-image/README.md), format 1.
struct StoredImage
{
    std::string reference{};
    std::string manifest_digest{};
    RunConfig config{};
    std::string folder{}; ///< not in the file
};
std::string encode(const StoredImage& image);
Result<StoredImage> parse_stored_image(std::string_view json);
/// dstack-store.json: what the guest reads to find an image.
std::string encode_store_index(const std::vector<StoredImage>& images);

} // namespace dstack::image
