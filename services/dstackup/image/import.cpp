#include "services/dstackup/image/import.hpp"
#include "shared/process/fd.hpp"
#include "shared/state/files.hpp"
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <fcntl.h>
#include <optional>
#include <sys/stat.h>
#include <unistd.h>

namespace dstack::image
{

namespace
{
constexpr std::size_t max_document = 4 * 1024 * 1024;
constexpr int max_nesting = 4; // index in index

Error bad(std::string what) { return Error{Errc::invalid_argument, std::move(what), {}, {}}; }

/// A directory that is removed at the end.
class Scratch
{
  public:
    static Result<Scratch> make()
    {
        const char* base = std::getenv("TMPDIR");
        std::string path = std::string{base != nullptr && *base != '\0' ? base : "/tmp"} + "/dstack-import.XXXXXX";
        if (mkdtemp(path.data()) == nullptr) { return errno_error("mkdtemp " + path, errno); }
        return Scratch{std::move(path)};
    }
    Scratch(Scratch&& other) noexcept : path_(std::exchange(other.path_, {})) {}
    Scratch& operator=(Scratch&&) = delete;
    ~Scratch()
    {
        if (!path_.empty()) { (void)state::remove_tree(path_); }
    }
    const std::string& path() const { return path_; }

  private:
    explicit Scratch(std::string path) : path_(std::move(path)) {}
    std::string path_;
};

Result<Done> copy_member(TarReader& tar, const std::string& target)
{
    const process::Fd out{open(target.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600)};
    if (!out) { return errno_error("open " + target, errno); }
    std::array<char, 64 * 1024> buffer{};
    while (true)
    {
        auto got = tar.read(buffer);
        if (!got) { return std::move(got).error(); }
        if (*got == 0) { return Done{}; }
        if (write(out.get(), buffer.data(), *got) != static_cast<ssize_t>(*got))
        {
            return errno_error("write " + target, errno);
        }
    }
}

/// Unpacks the archive's files (nothing else) below `folder`. Links are left out: a blob is a file.
Result<Done> unpack_archive(const std::string& path, const std::string& folder, Limits limits)
{
    auto file = open_file(path);
    if (!file) { return std::move(file).error(); }
    auto plain = decompress(**file);
    if (!plain) { return std::move(plain).error(); }
    TarReader tar{**plain};
    std::uint64_t bytes = 0;
    std::uint64_t entries = 0;
    while (true)
    {
        auto entry = tar.next();
        if (!entry) { return std::move(entry).error(); }
        if (!*entry) { return Done{}; }
        if ((bytes += (*entry)->size) > limits.bytes || ++entries > limits.entries)
        {
            return Error{Errc::resource_exhausted, path + " is too large for an image", {}, {}};
        }
        auto parts = safe_parts((*entry)->name);
        if (!parts) { return std::move(parts).error(); }
        if ((*entry)->kind != Entry::Kind::file || parts->empty()) { continue; }
        std::string target = folder;
        for (std::size_t i = 0; i + 1 < parts->size(); ++i) { target += "/" + (*parts)[i]; }
        auto made = state::make_dirs(target, 0700);
        if (!made) { return std::move(made).error(); }
        auto copied = copy_member(tar, target + "/" + parts->back());
        if (!copied) { return copied; }
    }
}

std::string blob_path(const std::string& layout, const std::string& digest)
{
    return layout + "/blobs/sha256/" + digest.substr(7);
}

/// A document whose bytes have that digest.
Result<std::string> read_blob(const std::string& path, const std::string& digest)
{
    auto text = state::read_file(path, max_document);
    if (!text) { return std::move(text).error().within("blob " + digest); }
    auto file = open_file(path);
    if (!file) { return std::move(file).error(); }
    HashingSource hashing{std::move(*file)};
    auto found = hashing.digest();
    if (!found) { return std::move(found).error(); }
    if (*found != digest)
    {
        return Error{Errc::data_loss, path + ": the content is " + *found + ", its name says " + digest, {}, {}};
    }
    return text;
}

struct Layer
{
    std::string path{};
    std::string digest{};  ///< of the file; empty: not known
    std::string diff_id{}; ///< of what is inside; empty: not known
};

/// All digests first, so that a damaged layer is known before anything is unpacked.
Result<Done> check_digests(const std::vector<Layer>& layers)
{
    for (const auto& layer : layers)
    {
        auto file = open_file(layer.path);
        if (!file) { return std::move(file).error(); }
        if (layer.digest.empty()) { continue; }
        HashingSource hashing{std::move(*file)};
        auto found = hashing.digest();
        if (!found) { return std::move(found).error(); }
        if (*found != layer.digest)
        {
            return Error{Errc::data_loss,
                         layer.path + ": the content is " + *found + ", the manifest says " + layer.digest,
                         {},
                         {}};
        }
    }
    return Done{};
}

Result<Done> unpack_layers(const std::vector<Layer>& layers, const std::string& rootfs, Limits limits)
{
    auto unpacker = Unpacker::open(rootfs, limits);
    if (!unpacker) { return std::move(unpacker).error(); }
    for (const auto& layer : layers)
    {
        auto file = open_file(layer.path);
        if (!file) { return std::move(file).error(); }
        auto plain = decompress(**file);
        if (!plain) { return std::move(plain).error().within(layer.path); }
        HashingSource hashing{std::move(*plain)};
        auto applied = unpacker->apply(hashing);
        if (!applied) { return std::move(applied).error().within(layer.path); }
        auto inside = hashing.digest();
        if (!inside) { return std::move(inside).error().within(layer.path); }
        if (!layer.diff_id.empty() && *inside != layer.diff_id)
        {
            return Error{Errc::data_loss,
                         layer.path + ": unpacked it is " + *inside + ", the config says " + layer.diff_id,
                         {},
                         {}};
        }
    }
    return Done{};
}

struct Plan
{
    StoredImage image{};
    std::vector<Layer> layers{};
};

Result<Plan> plan_oci(const std::string& layout, Descriptor from, const std::string& reference)
{
    Manifest manifest;
    for (int depth = 0;; ++depth)
    {
        auto text = read_blob(blob_path(layout, from.digest), from.digest);
        if (!text) { return std::move(text).error(); }
        auto parsed = parse_manifest(*text);
        if (!parsed) { return std::move(parsed).error(); }
        if (parsed->manifests.empty())
        {
            manifest = std::move(*parsed);
            break;
        }
        const auto fits = [](const Descriptor& d) { return d.os == "linux" && d.architecture == "amd64"; };
        const auto found = std::find_if(parsed->manifests.begin(), parsed->manifests.end(), fits);
        if (found == parsed->manifests.end() || depth >= max_nesting)
        {
            return bad("no image for linux/amd64 in " + from.digest);
        }
        const Descriptor next = *found;
        from = next;
    }
    auto config_text = read_blob(blob_path(layout, manifest.config.digest), manifest.config.digest);
    if (!config_text) { return std::move(config_text).error(); }
    auto config = parse_run_config(*config_text);
    if (!config) { return std::move(config).error(); }
    Plan out;
    for (std::size_t i = 0; i < manifest.layers.size(); ++i)
    {
        const auto& digest = manifest.layers[i].digest;
        const bool known = config->diff_ids.size() == manifest.layers.size();
        out.layers.push_back({blob_path(layout, digest), digest, known ? config->diff_ids[i] : std::string{}});
    }
    out.image = {normalize_reference(reference), from.digest, std::move(*config), {}};
    return out;
}

std::string name_of_layout(const std::string& path)
{
    std::string name = path;
    while (name.size() > 1 && name.ends_with('/')) { name.pop_back(); }
    return name.substr(name.rfind('/') + 1);
}

Result<std::vector<Plan>> plan_layout(const std::string& layout, const std::string& label, const std::string& name)
{
    auto text = state::read_file(layout + "/index.json", max_document);
    if (!text) { return std::move(text).error(); }
    auto index = parse_index(*text);
    if (!index) { return std::move(index).error().within(label); }
    if (index->empty()) { return bad(label + ": index.json names no image"); }
    if (!name.empty() && index->size() > 1)
    {
        return bad(label + " holds " + std::to_string(index->size()) + " images: --name fits one only");
    }
    std::vector<Plan> out;
    for (const auto& descriptor : *index)
    {
        std::string reference = name.empty() ? descriptor.reference : name;
        if (reference == "latest") { reference = name_of_layout(label) + ":latest"; } // skopeo writes only the tag
        if (reference.empty())
        {
            return bad(label +
                       ": the image has no name (annotation org.opencontainers.image.ref.name): give one with --name");
        }
        auto checked = check_reference(reference);
        if (!checked) { return std::move(checked).error().within(label); }
        auto plan = plan_oci(layout, descriptor, reference);
        if (!plan) { return std::move(plan).error().within(label); }
        out.push_back(std::move(*plan));
    }
    return out;
}

/// Names of members of the archive, as safe as those of layers.
Result<std::string> member_path(const std::string& folder, const std::string& name)
{
    auto parts = safe_parts(name);
    if (!parts) { return std::move(parts).error(); }
    std::string out = folder;
    for (const auto& part : *parts) { out += "/" + part; }
    return out;
}

Result<std::vector<Plan>> plan_docker(const std::string& folder, const std::string& label, const std::string& name)
{
    auto text = state::read_file(folder + "/manifest.json", max_document);
    if (!text) { return std::move(text).error(); }
    auto images = parse_docker_manifest(*text);
    if (!images) { return std::move(images).error().within(label); }
    if (!name.empty() && images->size() > 1)
    {
        return bad(label + " holds " + std::to_string(images->size()) + " images: --name fits one only");
    }
    std::vector<Plan> out;
    for (const auto& image : *images)
    {
        auto config_path = member_path(folder, image.config);
        if (!config_path) { return std::move(config_path).error(); }
        auto config_text = state::read_file(*config_path, max_document);
        if (!config_text) { return std::move(config_text).error().within(label); }
        auto config = parse_run_config(*config_text);
        if (!config) { return std::move(config).error().within(label); }
        if (config->diff_ids.size() != image.layers.size())
        {
            return bad(label + ": the config has another number of layers than the archive");
        }
        auto hashing = open_file(*config_path);
        if (!hashing) { return std::move(hashing).error(); }
        HashingSource hashed{std::move(*hashing)};
        auto digest = hashed.digest(); // docker's image id; its archives have no manifest
        if (!digest) { return std::move(digest).error(); }
        Plan plan;
        for (std::size_t i = 0; i < image.layers.size(); ++i)
        {
            auto path = member_path(folder, image.layers[i]);
            if (!path) { return std::move(path).error(); }
            plan.layers.push_back({std::move(*path), {}, config->diff_ids[i]});
        }
        const std::string reference = !name.empty() ? name : image.tags.empty() ? std::string{} : image.tags.front();
        auto checked = check_reference(reference);
        if (!checked) { return std::move(checked).error().within(label + ": no usable name, give one with --name"); }
        plan.image = {normalize_reference(reference), *digest, std::move(*config), {}};
        out.push_back(std::move(plan));
    }
    return out;
}
} // namespace

Result<std::vector<Imported>> import_images(Store& store, const std::string& path, const std::string& name,
                                            Limits limits)
{
    struct stat info
    {
    };
    if (stat(path.c_str(), &info) != 0) { return errno_error("open " + path, errno); }
    std::optional<Scratch> scratch;
    std::string folder = path;
    if (!S_ISDIR(info.st_mode))
    {
        auto made = Scratch::make();
        if (!made) { return std::move(made).error(); }
        scratch.emplace(std::move(*made));
        folder = scratch->path();
        auto unpacked = unpack_archive(path, folder, limits);
        if (!unpacked) { return std::move(unpacked).error().within(path); }
    }
    const bool oci = access((folder + "/index.json").c_str(), F_OK) == 0;
    const bool docker = access((folder + "/manifest.json").c_str(), F_OK) == 0;
    if (!oci && !docker)
    {
        return bad(path + " is no OCI layout (index.json) and no docker archive (manifest.json)")
            .with_hint("make one with: skopeo copy docker://IMAGE oci:DIR:TAG");
    }
    auto plans = oci ? plan_layout(folder, path, name) : plan_docker(folder, path, name);
    if (!plans) { return std::move(plans).error(); }
    std::vector<Imported> out;
    for (const auto& plan : *plans)
    {
        auto checked = check_digests(plan.layers);
        if (!checked) { return std::move(checked).error(); }
        const auto fill = [&](const std::string& rootfs) { return unpack_layers(plan.layers, rootfs, limits); };
        auto changed = store.put(plan.image, fill);
        if (!changed) { return std::move(changed).error().within(plan.image.reference); }
        out.push_back({plan.image.reference, plan.image.manifest_digest, !*changed});
    }
    return out;
}

} // namespace dstack::image
