#include "services/dstackup/image_verbs.hpp"
#include "services/dstackup/image/import.hpp"
#include "services/dstackup/layout.hpp"
#include "shared/state/files.hpp"
#include <cstdio>
#include <nlohmann/json.hpp>

namespace dstack::up
{

namespace
{
using Json = nlohmann::json;

Result<std::vector<image::Imported>> import_and_pack(const Layout& layout, const ImageImport& wish)
{
    auto made = state::make_dirs(layout.oci(), 0755);
    if (!made) { return std::move(made).error().with_hint("run as root, or choose a --prefix of yours"); }
    auto lock = state::FileLock::acquire(layout.oci() + "/store.lock", std::chrono::milliseconds{60'000});
    if (!lock) { return std::move(lock).error().within("another import is at work"); }
    image::Store store{layout.oci()};
    auto imported = image::import_images(store, wish.path, wish.name, {});
    if (!imported) { return imported; }
    bool changed = !store.packed();
    for (const auto& one : *imported) { changed = changed || !one.already; }
    if (changed)
    {
        auto packed = store.pack();
        if (!packed) { return std::move(packed).error().within("pack the store"); }
    }
    return imported;
}
} // namespace

int image_import(const Global& global, const ImageImport& wish)
{
    auto imported = import_and_pack(Layout{global.prefix}, wish);
    if (!imported) { return print_error(global, imported.error()); }
    Json list = Json::array();
    for (const auto& one : *imported)
    {
        list.push_back(
            {{"reference", one.reference}, {"manifest_digest", one.manifest_digest}, {"already", one.already}});
        if (!global.json)
        {
            std::printf("%s %s %s\n", one.already ? "already imported" : "imported", one.reference.c_str(),
                        one.manifest_digest.c_str());
        }
    }
    if (global.json) { print_document("image-import", Json{{"images", std::move(list)}}.dump()); }
    return exit_ok;
}

int image_ls(const Global& global)
{
    const auto images = image::Store{Layout{global.prefix}.oci()}.list();
    if (!images) { return print_error(global, images.error()); }
    Json list = Json::array();
    for (const auto& one : *images)
    {
        list.push_back({{"reference", one.reference}, {"manifest_digest", one.manifest_digest}});
        if (!global.json) { std::printf("%-50s %s\n", one.reference.c_str(), one.manifest_digest.c_str()); }
    }
    if (global.json) { print_document("image-list", Json{{"images", std::move(list)}}.dump()); }
    else if (images->empty()) { say(global, "no images: dstackup image import PATH adds some"); }
    return exit_ok;
}

} // namespace dstack::up
