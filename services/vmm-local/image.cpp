#include "services/vmm-local/image.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cstdlib>
#include <dirent.h>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <sys/stat.h>

namespace dstack::vmm
{

namespace
{
using nlohmann::json;

constexpr std::size_t max_small_file = 1024 * 1024;

Error failed(std::string text) { return Error{Errc::invalid_argument, "Failed to load image: " + std::move(text)}; }

std::optional<std::string> read_small(const std::string& path)
{
    std::ifstream file{path, std::ios::binary};
    if (!file) { return std::nullopt; }
    std::string out(max_small_file + 1, '\0');
    file.read(out.data(), static_cast<std::streamsize>(out.size()));
    out.resize(static_cast<std::size_t>(file.gcount()));
    if (out.size() > max_small_file) { return std::nullopt; }
    return out;
}

std::optional<std::string> real_path(const std::string& path)
{
    const std::unique_ptr<char, void (*)(void*)> resolved{realpath(path.c_str(), nullptr), std::free};
    if (!resolved) { return std::nullopt; }
    return std::string{resolved.get()};
}

/// The artifact that `key` names, checked; nothing when the key is absent.
Result<std::optional<std::string>> artifact(const json& metadata, const char* key, std::string_view label,
                                            const std::string& directory)
{
    const auto it = metadata.find(key);
    if (it == metadata.end() || it->is_null()) { return std::optional<std::string>{}; }
    if (!it->is_string()) { return failed(std::string{"metadata.json: `"} + key + "` is not a string"); }
    const std::string path = directory + "/" + *it->get_ptr<const std::string*>();
    struct stat info{};
    if (stat(path.c_str(), &info) != 0) { return failed(std::string{label} + " does not exist: " + path); }
    const auto real = real_path(path);
    if (!real || real->compare(0, directory.size() + 1, directory + "/") != 0)
    {
        return failed(std::string{label} + " escapes image directory: " + path);
    }
    if (!S_ISREG(info.st_mode)) { return failed(std::string{label} + " is not a file: " + path); }
    return std::optional<std::string>{*real};
}

bool ends_with(std::string_view text, std::string_view end)
{
    return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

std::string trimmed(std::string_view text)
{
    constexpr std::string_view blank = " \t\r\n";
    const auto start = text.find_first_not_of(blank);
    if (start == std::string_view::npos) { return {}; }
    return std::string{text.substr(start, text.find_last_not_of(blank) - start + 1)};
}

bool is_sha256_hex(std::string_view text)
{
    return text.size() == 64 && text.find_first_not_of("0123456789abcdefABCDEF") == std::string_view::npos;
}

std::string version_of(const json& metadata, const std::string& name)
{
    const auto it = metadata.find("version");
    if (it != metadata.end() && it->is_string() && !it->get_ptr<const std::string*>()->empty())
    {
        return *it->get_ptr<const std::string*>();
    }
    for (const std::string_view prefix : {std::string_view{"dstack-dev-"}, std::string_view{"dstack-"}})
    {
        if (name.rfind(prefix, 0) == 0) { return name.substr(prefix.size()); }
    }
    return {};
}

bool flag(const json& metadata, const char* key)
{
    const auto it = metadata.find(key);
    return it != metadata.end() && it->is_boolean() && *it->get_ptr<const bool*>();
}
} // namespace

bool valid_image_name(std::string_view name)
{
    if (name.find("..") != std::string_view::npos) { return false; }
    std::size_t characters = 0;
    for (const char c : name)
    {
        const auto byte = static_cast<unsigned char>(c);
        if ((byte & 0xc0) != 0x80) { ++characters; }
        const bool letter = byte >= 0x80 || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!letter && c != '_' && c != '-' && c != '.') { return false; }
    }
    return characters <= 64;
}

Version parse_version(std::string_view text)
{
    std::array<std::uint16_t, 3> parts{};
    for (std::size_t i = 0; i < parts.size(); ++i)
    {
        const auto end = std::min(text.find('.'), text.size());
        const std::string_view part = text.substr(0, end);
        const auto [stop, error] = std::from_chars(part.data(), part.data() + part.size(), parts[i]);
        if (part.empty() || error != std::errc{} || stop != part.data() + part.size()) { return Version{}; }
        text.remove_prefix(std::min(end + 1, text.size()));
    }
    return Version{parts[0], parts[1], parts[2]};
}

Result<Image> load_image(const std::string& image_dir, const std::string& name)
{
    if (!valid_image_name(name)) { return Error{Errc::invalid_argument, "Invalid image name"}; }
    const auto directory = real_path(image_dir + "/" + name);
    if (name.empty() || !directory)
    {
        Error error = failed("no image '" + name + "' in " + image_dir);
        error.code = Errc::not_found;
        return error;
    }
    const auto text = read_small(*directory + "/metadata.json");
    if (!text) { return failed("cannot read " + *directory + "/metadata.json"); }
    const json metadata = json::parse(*text, nullptr, false);
    if (!metadata.is_object()) { return failed(*directory + "/metadata.json is no JSON object"); }
    for (const char* key : {"kernel", "initrd"})
    {
        if (!metadata.contains(key)) { return failed(std::string{"missing field `"} + key + "` in metadata.json"); }
    }

    Image image;
    image.name = name;
    image.directory = *directory;
    image.version = version_of(metadata, name);
    image.shared_ro = flag(metadata, "shared_ro");
    image.is_dev = flag(metadata, "is_dev");
    image.description = metadata.dump(-1, ' ', false, json::error_handler_t::replace);
    const auto cmdline = metadata.find("cmdline");
    if (cmdline != metadata.end() && cmdline->is_string()) { image.cmdline = *cmdline->get_ptr<const std::string*>(); }
    std::optional<std::string> kernel, initrd, hda, sev_bios;
    const struct
    {
        const char* key;
        const char* label;
        std::optional<std::string>& out;
    } artifacts[] = {{"kernel", "Kernel", kernel},         {"initrd", "Initrd", initrd}, {"hda", "Hda", hda},
                     {"rootfs", "Rootfs", image.rootfs},   {"bios", "Bios", image.bios}, {"bios-sev", "SEV bios", sev_bios}};
    for (const auto& [key, label, out] : artifacts)
    {
        auto checked = artifact(metadata, key, label, *directory);
        if (!checked) { return std::move(checked).error(); }
        out = std::move(*checked);
    }
    if (!kernel || !initrd) { return failed("kernel and initrd must be named in metadata.json"); }
    image.kernel = *kernel;
    image.initrd = *initrd;

    const Version version = parse_version(image.version);
    if (image.rootfs && !ends_with(*image.rootfs, ".verity") &&
        !(ends_with(*image.rootfs, ".iso") && version < Version{0, 5, 0}))
    {
        const auto slash = image.rootfs->rfind('/');
        const auto dot = image.rootfs->rfind('.');
        const bool has = dot != std::string::npos && dot > slash;
        return failed("Unsupported rootfs type: " + (has ? image.rootfs->substr(dot + 1) : std::string{}));
    }
    if (const auto digest = read_small(*directory + "/digest.txt"))
    {
        std::string hex = trimmed(*digest);
        std::transform(hex.begin(), hex.end(), hex.begin(),
                       [](char c) { return c >= 'A' && c <= 'F' ? static_cast<char>(c + 32) : c; });
        if (is_sha256_hex(hex)) { image.os_image_hash = hex; }
    }
    return image;
}

Result<std::vector<Image>> list_images(const std::string& image_dir)
{
    const std::unique_ptr<DIR, int (*)(DIR*)> dir{opendir(image_dir.c_str()), closedir};
    if (!dir) { return Error{Errc::not_found, "Failed to read image directory"}; }
    std::vector<Image> out;
    while (const dirent* entry = readdir(dir.get()))
    {
        if (entry->d_name[0] == '.') { continue; }
        auto image = load_image(image_dir, entry->d_name);
        if (image) { out.push_back(std::move(*image)); }
    }
    std::sort(out.begin(), out.end(), [](const Image& a, const Image& b) { return a.name < b.name; });
    return out;
}

Result<std::string> ImageDigests::digest_of(const std::string& path)
{
    struct stat info{};
    if (stat(path.c_str(), &info) != 0) { return errno_error("read " + path, errno); }
    std::ostringstream signature;
    signature << info.st_dev << ' ' << info.st_ino << ' ' << info.st_size << ' ' << info.st_mtim.tv_sec << ' '
              << info.st_mtim.tv_nsec << ' ' << info.st_ctim.tv_sec << ' ' << info.st_ctim.tv_nsec;
    Seen& seen = seen_[path];
    if (seen.signature == signature.str()) { return seen.sha256; }
    std::ifstream file{path, std::ios::binary};
    if (!file) { return errno_error("read " + path, errno); }
    crypto::Sha256 sha;
    std::vector<char> buffer(1024 * 1024);
    while (file)
    {
        file.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
        sha.update(crypto::view({buffer.data(), static_cast<std::size_t>(file.gcount())}));
    }
    if (file.bad()) { return Error{Errc::data_loss, "read " + path + ": input/output error"}; }
    seen.signature = signature.str();
    seen.sha256 = crypto::to_hex(sha.finish());
    return seen.sha256;
}

Result<Done> ImageDigests::verify(const Image& image)
{
    const auto damaged = [&image](const std::string& why)
    {
        return Error{Errc::data_loss, "Failed to load image: " + image.name + " is damaged: " + why,
                     "install the image again", {}};
    };
    const auto sums = read_small(image.directory + "/sha256sum.txt");
    if (!sums) { return Done{}; }
    if (!image.os_image_hash.empty() && crypto::to_hex(crypto::sha256(*sums)) != image.os_image_hash)
    {
        return damaged("digest.txt is not the hash of sha256sum.txt");
    }
    std::istringstream lines{*sums};
    std::string line;
    while (std::getline(lines, line))
    {
        if (line.empty()) { continue; }
        const std::string expected = line.substr(0, 64);
        const std::string file = line.size() > 66 ? line.substr(66) : std::string{};
        if (!is_sha256_hex(expected) || file.empty() || file.find('/') != std::string::npos)
        {
            return damaged("sha256sum.txt has a line that is no checksum");
        }
        const std::string path = image.directory + "/" + file;
        struct stat info{};
        if (stat(path.c_str(), &info) != 0) { continue; } // upstream's list names measurement files that need not be there
        auto actual = digest_of(path);
        if (!actual) { return std::move(actual).error(); }
        if (*actual != expected) { return damaged(file + " does not have the checksum of sha256sum.txt"); }
    }
    return Done{};
}

} // namespace dstack::vmm
