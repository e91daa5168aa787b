#include "services/dstackup/image/oci.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include <algorithm>
#include <nlohmann/json.hpp>

namespace dstack::image
{

namespace
{
using Json = nlohmann::json;
constexpr std::size_t max_items = 10'000;

Error bad(std::string what) { return Error{Errc::invalid_argument, std::move(what), {}, {}}; }

Result<Json> object_of(std::string_view text, std::string_view what)
{
    auto out = Json::parse(text, nullptr, false);
    if (!out.is_object()) { return bad(std::string{what} + " is no JSON object"); }
    return out;
}

std::string text_at(const Json& object, const char* key)
{
    if (!object.is_object()) { return {}; }
    const auto found = object.find(key);
    return found != object.end() && found->is_string() ? found->get<std::string>() : std::string{};
}

Result<std::vector<std::string>> texts_at(const Json& object, const char* key)
{
    std::vector<std::string> out;
    const auto found = object.find(key);
    if (found == object.end() || found->is_null()) { return out; }
    if (!found->is_array() || found->size() > max_items) { return bad(std::string{key} + " is no list"); }
    for (const auto& item : *found)
    {
        if (!item.is_string()) { return bad(std::string{key} + " holds something that is no text"); }
        out.push_back(item.get<std::string>());
    }
    return out;
}

bool is_digest(std::string_view text)
{
    return text.size() == 71 && text.starts_with("sha256:") &&
           text.find_first_not_of("0123456789abcdef", 7) == std::string_view::npos;
}

Result<Descriptor> descriptor_of(const Json& item)
{
    Descriptor out;
    out.digest = text_at(item, "digest");
    if (!is_digest(out.digest)) { return bad("a descriptor's digest is not sha256:<64 hex>"); }
    const auto size = item.find("size");
    if (size != item.end() && size->is_number_unsigned()) { out.size = size->get<std::uint64_t>(); }
    out.media_type = text_at(item, "mediaType");
    if (const auto notes = item.find("annotations"); notes != item.end())
    {
        out.reference = text_at(*notes, "io.containerd.image.name");
        if (out.reference.empty()) { out.reference = text_at(*notes, "org.opencontainers.image.ref.name"); }
    }
    if (const auto platform = item.find("platform"); platform != item.end())
    {
        out.os = text_at(*platform, "os");
        out.architecture = text_at(*platform, "architecture");
    }
    return out;
}

Result<std::vector<Descriptor>> descriptors_at(const Json& object, const char* key)
{
    std::vector<Descriptor> out;
    const auto found = object.find(key);
    if (found == object.end() || !found->is_array() || found->size() > max_items)
    {
        return bad(std::string{key} + " is no list");
    }
    for (const auto& item : *found)
    {
        auto one = descriptor_of(item);
        if (!one) { return std::move(one).error(); }
        out.push_back(std::move(*one));
    }
    return out;
}

Json config_json(const RunConfig& config)
{
    return {{"entrypoint", config.entrypoint},
            {"cmd", config.cmd},
            {"env", config.env},
            {"workdir", config.workdir},
            {"user", config.user}};
}
constexpr auto replace = Json::error_handler_t::replace;
} // namespace

Result<std::vector<Descriptor>> parse_index(std::string_view json)
{
    auto document = object_of(json, "index.json");
    if (!document) { return std::move(document).error(); }
    return descriptors_at(*document, "manifests");
}

Result<Manifest> parse_manifest(std::string_view json)
{
    auto document = object_of(json, "the manifest");
    if (!document) { return std::move(document).error(); }
    Manifest out;
    if (document->contains("manifests"))
    {
        auto manifests = descriptors_at(*document, "manifests");
        if (!manifests) { return std::move(manifests).error(); }
        out.manifests = std::move(*manifests);
        if (out.manifests.empty()) { return bad("the index names no image"); }
        return out;
    }
    const auto config = document->find("config");
    if (config == document->end()) { return bad("the manifest names no config"); }
    auto config_descriptor = descriptor_of(*config);
    if (!config_descriptor) { return std::move(config_descriptor).error(); }
    out.config = std::move(*config_descriptor);
    auto layers = descriptors_at(*document, "layers");
    if (!layers) { return std::move(layers).error(); }
    out.layers = std::move(*layers);
    return out;
}

Result<RunConfig> parse_run_config(std::string_view json)
{
    auto document = object_of(json, "the image's config");
    if (!document) { return std::move(document).error(); }
    RunConfig out;
    if (const auto config = document->find("config"); config != document->end() && config->is_object())
    {
        for (const auto& [key, list] :
             {std::pair{"Entrypoint", &out.entrypoint}, std::pair{"Cmd", &out.cmd}, std::pair{"Env", &out.env}})
        {
            auto texts = texts_at(*config, key);
            if (!texts) { return std::move(texts).error(); }
            *list = std::move(*texts);
        }
        const auto workdir = text_at(*config, "WorkingDir");
        if (!workdir.empty()) { out.workdir = workdir; }
        out.user = text_at(*config, "User");
    }
    if (const auto rootfs = document->find("rootfs"); rootfs != document->end() && rootfs->is_object())
    {
        auto ids = texts_at(*rootfs, "diff_ids");
        if (!ids) { return std::move(ids).error(); }
        out.diff_ids = std::move(*ids);
        if (!std::all_of(out.diff_ids.begin(), out.diff_ids.end(), is_digest))
        {
            return bad("a diff_id is not sha256:<64 hex>");
        }
    }
    return out;
}

Result<std::vector<DockerImage>> parse_docker_manifest(std::string_view json)
{
    const auto document = Json::parse(json, nullptr, false);
    if (!document.is_array() || document.empty() || document.size() > max_items)
    {
        return bad("manifest.json is no list of images");
    }
    std::vector<DockerImage> out;
    for (const auto& item : document)
    {
        if (!item.is_object()) { return bad("manifest.json is no list of images"); }
        auto tags = texts_at(item, "RepoTags");
        if (!tags) { return std::move(tags).error(); }
        auto layers = texts_at(item, "Layers");
        if (!layers) { return std::move(layers).error(); }
        out.push_back({text_at(item, "Config"), std::move(*tags), std::move(*layers)});
        if (out.back().config.empty()) { return bad("manifest.json names no Config"); }
    }
    return out;
}

std::string normalize_reference(std::string_view name)
{
    const auto at = name.find('@');
    std::string repository{name.substr(0, at)};
    const std::string digest{at == std::string_view::npos ? std::string_view{} : name.substr(at)};
    const auto slash = repository.find('/');
    const auto first = repository.substr(0, slash);
    const bool has_host =
        slash != std::string::npos && (first.find_first_of(".:") != std::string::npos || first == "localhost");
    if (!has_host) { repository = "docker.io/" + (slash == std::string::npos ? "library/" + repository : repository); }
    const auto last = repository.substr(repository.rfind('/') + 1);
    if (digest.empty() && last.find(':') == std::string::npos) { repository += ":latest"; }
    return repository + digest;
}

Result<Done> check_reference(std::string_view name)
{
    const bool good = !name.empty() && name.size() <= 255 &&
                      std::all_of(name.begin(), name.end(),
                                  [](char c)
                                  {
                                      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                                             (c >= '0' && c <= '9') ||
                                             std::string_view{"._-/:@+"}.find(c) != std::string_view::npos;
                                  });
    if (good) { return Done{}; }
    return bad("an image's name has 1 to 255 letters, digits and . _ - / : @ +");
}

std::string folder_of(std::string_view reference)
{
    std::string slug;
    for (const char c : reference)
    {
        const bool plain =
            (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '-';
        if (plain) { slug += c; }
        else if (!slug.ends_with('_')) { slug += '_'; }
    }
    slug.resize(std::min<std::size_t>(slug.size(), 80));
    return slug + "-" + crypto::to_hex(crypto::sha256(reference)).substr(0, 8);
}

std::string encode(const StoredImage& image)
{
    const Json document{{"format", 1},
                        {"reference", image.reference},
                        {"manifest_digest", image.manifest_digest},
                        {"config", config_json(image.config)}};
    return document.dump(2, ' ', false, replace);
}

Result<StoredImage> parse_stored_image(std::string_view json)
{
    auto document = object_of(json, "image.json");
    if (!document) { return std::move(document).error(); }
    const auto format = document->find("format");
    if (format == document->end() || *format != 1) { return bad("image.json is not of format 1"); }
    StoredImage out;
    out.reference = text_at(*document, "reference");
    out.manifest_digest = text_at(*document, "manifest_digest");
    if (out.reference.empty()) { return bad("image.json has no reference"); }
    const auto config = document->find("config");
    if (config == document->end() || !config->is_object()) { return bad("image.json has no config"); }
    for (const auto& [key, list] : {std::pair{"entrypoint", &out.config.entrypoint}, std::pair{"cmd", &out.config.cmd},
                                    std::pair{"env", &out.config.env}})
    {
        auto texts = texts_at(*config, key);
        if (!texts) { return std::move(texts).error(); }
        *list = std::move(*texts);
    }
    const auto workdir = text_at(*config, "workdir");
    if (!workdir.empty()) { out.config.workdir = workdir; }
    out.config.user = text_at(*config, "user");
    return out;
}

std::string encode_store_index(const std::vector<StoredImage>& images)
{
    Json list = Json::array();
    for (const auto& image : images)
    {
        list.push_back({{"folder", image.folder},
                        {"format", 1},
                        {"reference", image.reference},
                        {"manifest_digest", image.manifest_digest},
                        {"config", config_json(image.config)}});
    }
    return Json{{"format", 1}, {"images", std::move(list)}}.dump(-1, ' ', false, replace);
}

} // namespace dstack::image
