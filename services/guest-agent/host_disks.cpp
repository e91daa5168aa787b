#include "services/guest-agent/host_disks.hpp"
#include "services/guest-agent/disks.hpp"
#include "shared/process/fd.hpp"
#include <algorithm>
#include <array>
#include <dirent.h>
#include <fcntl.h>
#include <filesystem>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

namespace dstack::guest
{

namespace
{

namespace fs = std::filesystem;
constexpr std::string_view share_mount = "/run/dstack/share";

/// The virtio disks that nothing else sits on (the root disk carries a device-mapper device), in the order of their
/// names.
std::vector<std::string> free_disks()
{
    std::vector<std::string> out;
    std::error_code code;
    for (const auto& entry : fs::directory_iterator{"/sys/block", code})
    {
        const std::string name = entry.path().filename();
        if (!name.starts_with("vd")) { continue; }
        if (fs::is_empty(entry.path() / "holders", code)) { out.push_back("/dev/" + name); }
    }
    std::ranges::sort(out);
    return out;
}

DiskKind kind_of(const std::string& device)
{
    const process::Fd fd{::open(device.c_str(), O_RDONLY | O_CLOEXEC)};
    std::array<char, disk_head_bytes> head{};
    if (fd.get() < 0 || ::pread(fd.get(), head.data(), head.size(), 0) != static_cast<ssize_t>(head.size()))
    {
        return DiskKind::other;
    }
    return disk_kind(head);
}

Result<Done> mount_disk(const std::string& device, std::string_view where, const char* type, const char* options)
{
    const std::string target{where};
    std::error_code code;
    fs::create_directories(target, code);
    if (::mount(device.c_str(), target.c_str(), type, MS_RDONLY | MS_NOSUID | MS_NODEV, options) != 0)
    {
        return errno_error("mount " + device + " (" + type + ")", errno);
    }
    return Done{};
}

/// `required`: its absence is an error, with upstream's words.
Result<std::optional<std::string>> read_share_file(const char* name, std::size_t limit, bool required)
{
    auto text = read_bounded(std::string{share_mount} + "/" + name, limit);
    if (text) { return std::optional<std::string>{std::move(*text)}; }
    if (text.error().code == Errc::not_found && !required) { return std::optional<std::string>{}; }
    if (text.error().code == Errc::not_found)
    {
        return Error{Errc::not_found, std::string{"Source file "} + name + " does not exist", {}, {}};
    }
    if (text.error().code == Errc::resource_exhausted)
    {
        return Error{Errc::resource_exhausted,
                     std::string{"Source file "} + name + " is too large, max size is " + std::to_string(limit) +
                         " bytes",
                     {},
                     {}};
    }
    return std::move(text).error().within("host share");
}

Result<Share> read_mounted_share()
{
    constexpr std::size_t kib = 1024, mib = 1024 * kib;
    auto compose = read_share_file("app-compose.json", 50 * mib, true);
    if (!compose) { return std::move(compose).error(); }
    auto sys_config = read_share_file(".sys-config.json", 32 * kib, true);
    if (!sys_config) { return std::move(sys_config).error(); }
    auto instance = read_share_file(".instance_info", 10 * kib, false);
    if (!instance) { return std::move(instance).error(); }
    auto simulator = read_share_file(".tee-simulator.json", 64 * kib, false);
    if (!simulator) { return std::move(simulator).error(); }
    auto env = read_share_file(".encrypted-env", 256 * kib, false);
    if (!env) { return std::move(env).error(); }
    return Share{std::move(**compose), std::move(**sys_config), std::move(*instance), std::move(*simulator),
                 std::move(*env)};
}

} // namespace

Result<std::string> read_bounded(const std::string& path, std::size_t max_bytes)
{
    const process::Fd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)};
    if (fd.get() < 0) { return errno_error("open " + path, errno); }
    struct stat info
    {
    };
    if (::fstat(fd.get(), &info) != 0) { return errno_error("stat " + path, errno); }
    if (!S_ISREG(info.st_mode)) { return Error{Errc::invalid_argument, path + ": not a regular file", {}, {}}; }
    std::string out;
    std::array<char, 16384> buffer{};
    ssize_t got = 0;
    while ((got = ::read(fd.get(), buffer.data(), buffer.size())) > 0)
    {
        out.append(buffer.data(), static_cast<std::size_t>(got));
        if (out.size() > max_bytes)
        {
            return Error{
                Errc::resource_exhausted, path + ": larger than " + std::to_string(max_bytes) + " bytes", {}, {}};
        }
    }
    if (got < 0) { return errno_error("read " + path, errno); }
    return out;
}

Result<Share> read_host_share()
{
    for (const std::string& device : free_disks())
    {
        if (kind_of(device) != DiskKind::host_share) { continue; }
        auto mounted = mount_disk(device, share_mount, "vfat", "umask=077,codepage=437,iocharset=ascii,utf8");
        if (!mounted) { return std::move(mounted).error().within("host share"); }
        auto share = read_mounted_share();
        ::umount2(std::string{share_mount}.c_str(), MNT_DETACH);
        return share;
    }
    return Error{Errc::not_found,
                 "there is no host share: no virtio disk has a FAT32 file system labelled DSTACKSHR",
                 "attach it, as upstream's host_share_mode vhd does",
                 {}};
}

Result<std::vector<StoredImage>> open_image_store()
{
    for (const std::string& device : free_disks())
    {
        if (kind_of(device) != DiskKind::squashfs) { continue; }
        auto mounted = mount_disk(device, store_mount, "squashfs", nullptr);
        if (!mounted) { return std::move(mounted).error().within("image store"); }
        auto index =
            read_bounded(std::string{store_mount} + "/" + std::string{store_index_name}, max_store_index_bytes);
        if (index) { return parse_store_index(*index); }
        ::umount2(std::string{store_mount}.c_str(), MNT_DETACH);
        if (index.error().code != Errc::not_found) { return std::move(index).error().within("image store"); }
    }
    return std::vector<StoredImage>{};
}

} // namespace dstack::guest
