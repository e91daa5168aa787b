#include "services/guest-agent/image_store.hpp"
#include <algorithm>
#include <nlohmann/json.hpp>

namespace dstack::guest
{

namespace
{

using nlohmann::json;

Error invalid(std::string what)
{
    return {Errc::invalid_argument,
            "the image store: " + std::move(what),
            "build it again with deploy/guest-image/make-store",
            {}};
}

bool read(const json& object, const char* key, std::string& out)
{
    const auto found = object.find(key);
    if (found == object.end() || !found->is_string()) { return false; }
    out = found->get<std::string>();
    return true;
}

bool read(const json& object, const char* key, std::vector<std::string>& out)
{
    const auto found = object.find(key);
    if (found == object.end() || !found->is_array()) { return false; }
    for (const json& item : *found)
    {
        if (!item.is_string()) { return false; }
        out.push_back(item.get<std::string>());
    }
    return true;
}

bool good_folder(std::string_view name)
{
    const auto good = [](char c)
    {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
               c == '.';
    };
    return !name.empty() && name.size() <= 255 && name.front() != '.' && std::ranges::all_of(name, good);
}

/// "host/path" of "host/path:tag@digest".
std::string_view repository(std::string_view reference)
{
    reference = reference.substr(0, reference.find('@'));
    const std::size_t colon = reference.rfind(':');
    const std::size_t slash = reference.rfind('/');
    return colon != std::string_view::npos && (slash == std::string_view::npos || colon > slash)
               ? reference.substr(0, colon)
               : reference;
}

} // namespace

Result<std::vector<StoredImage>> parse_store_index(std::string_view text)
{
    const json document = json::parse(text, nullptr, false);
    if (!document.is_object() || document.value("format", json{}) != 1)
    {
        return invalid(std::string{store_index_name} + " is not of format 1");
    }
    const auto list = document.find("images");
    if (list == document.end() || !list->is_array())
    {
        return invalid(std::string{store_index_name} + " has no images");
    }
    std::vector<StoredImage> out;
    for (const json& item : *list)
    {
        StoredImage image;
        const auto config = item.is_object() ? item.find("config") : item.end();
        if (!item.is_object() || config == item.end() || !config->is_object() || !read(item, "folder", image.folder) ||
            !read(item, "reference", image.reference) || !read(item, "manifest_digest", image.manifest_digest) ||
            !read(*config, "entrypoint", image.config.entrypoint) || !read(*config, "cmd", image.config.cmd) ||
            !read(*config, "env", image.config.env) || !read(*config, "workdir", image.config.workdir) ||
            !read(*config, "user", image.config.user))
        {
            return invalid("entry " + std::to_string(out.size() + 1) + " of " + std::string{store_index_name} +
                           " is incomplete");
        }
        if (!good_folder(image.folder))
        {
            return invalid("'" + image.folder.substr(0, 80) + "' is not a folder's name");
        }
        out.push_back(std::move(image));
    }
    return out;
}

Result<StoredImage> find_image(const std::vector<StoredImage>& images, std::string_view reference)
{
    const std::size_t at = reference.find('@');
    const std::string_view digest = at == std::string_view::npos ? std::string_view{} : reference.substr(at + 1);
    std::string list;
    for (const StoredImage& image : images)
    {
        const bool same = digest.empty()
                              ? image.reference == reference
                              : image.manifest_digest == digest && repository(image.reference) == repository(reference);
        if (same) { return image; }
        list += (list.empty() ? "" : ", ") + image.reference + (digest.empty() ? "" : "@" + image.manifest_digest);
    }
    Error error{Errc::not_found, "the image " + std::string{reference} + " is not in the image store", {}, {}};
    error.message += list.empty() ? ", which is empty" : ", which has: " + list;
    error.hint = "import it on the host: dstackup image import PATH";
    return error;
}

} // namespace dstack::guest
