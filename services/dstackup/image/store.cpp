#include "services/dstackup/image/store.hpp"
#include "shared/process/process.hpp"
#include "shared/state/files.hpp"
#include <algorithm>
#include <dirent.h>
#include <fcntl.h>
#include <memory>
#include <optional>
#include <sys/stat.h>
#include <unistd.h>

namespace dstack::image
{

namespace
{
constexpr time_t epoch = 1'700'000'000; // every folder of the store: the same images give the same disk
constexpr std::size_t max_document = 4 * 1024 * 1024;
constexpr milliseconds pack_limit{300'000};
constexpr std::string_view index_name = "dstack-store.json";

Result<std::vector<std::string>> names_in(const std::string& folder)
{
    std::vector<std::string> out;
    const auto close_dir = [](DIR* dir) { closedir(dir); };
    const std::unique_ptr<DIR, decltype(close_dir)> dir{opendir(folder.c_str()), close_dir};
    if (!dir)
    {
        if (errno == ENOENT) { return out; }
        return errno_error("open " + folder, errno);
    }
    while (const dirent* entry = readdir(dir.get()))
    {
        if (entry->d_name[0] != '.') { out.emplace_back(entry->d_name); }
    }
    std::sort(out.begin(), out.end());
    return out;
}

void set_epoch(const std::string& path)
{
    const timespec times[2] = {{epoch, 0}, {epoch, 0}};
    utimensat(AT_FDCWD, path.c_str(), times, AT_SYMLINK_NOFOLLOW);
}

Task<> run_once(Loop& loop, process::Spec spec, std::optional<Result<process::Output>>& out)
{
    auto result = co_await process::output_of(loop, spec, pack_limit);
    out.emplace(std::move(result));
}

Result<Done> run_program(std::vector<std::string> argv)
{
    process::Spec spec;
    spec.argv = std::move(argv);
    spec.out.kind = process::Sink::Kind::capture;
    spec.err.kind = process::Sink::Kind::capture;
    std::optional<Result<process::Output>> result;
    Loop loop;
    loop.run(run_once(loop, std::move(spec), result));
    if (!*result) { return std::move(*result).error(); }
    return Done{};
}

Result<Done> whole_sectors(const std::string& path)
{
    struct stat info
    {
    };
    if (stat(path.c_str(), &info) != 0) { return errno_error("stat " + path, errno); }
    const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd < 0) { return errno_error("open " + path, errno); }
    const bool done = ftruncate(fd, (info.st_size + 4095) / 4096 * 4096) == 0 && fsync(fd) == 0;
    const int failed = errno;
    close(fd);
    if (!done) { return errno_error("write " + path, failed); }
    return Done{};
}
} // namespace

Result<std::vector<StoredImage>> Store::list() const
{
    auto names = names_in(root());
    if (!names) { return std::move(names).error(); }
    std::vector<StoredImage> out;
    for (const auto& name : *names)
    {
        const auto text = state::read_file(root() + "/" + name + "/image.json", max_document);
        if (!text || name.ends_with(".new") || name.ends_with(".old")) { continue; }
        auto image = parse_stored_image(*text);
        if (!image) { return std::move(image).error().within(root() + "/" + name); }
        image->folder = name;
        out.push_back(std::move(*image));
    }
    std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.folder < b.folder; });
    return out;
}

Result<bool> Store::put(const StoredImage& image, const std::function<Result<Done>(const std::string& rootfs)>& fill)
{
    const std::string target = root() + "/" + folder_of(image.reference);
    const auto text = encode(image);
    const auto there = state::read_file(target + "/image.json", max_document);
    if (there && *there == text) { return false; }
    const std::string fresh = target + ".new";
    const std::string old = target + ".old";
    const auto build = [&]() -> Result<Done>
    {
        auto cleared = state::remove_tree(fresh);
        if (!cleared) { return cleared; }
        auto made = state::make_dirs(fresh + "/rootfs", 0755);
        if (!made) { return made; }
        auto filled = fill(fresh + "/rootfs");
        if (!filled) { return filled; }
        set_epoch(fresh + "/rootfs");
        return state::write_file_atomic(fresh + "/image.json", text, 0644);
    };
    auto built = build();
    if (!built)
    {
        (void)state::remove_tree(fresh);
        return std::move(built).error();
    }
    auto cleared = state::remove_tree(old);
    if (!cleared) { return std::move(cleared).error(); }
    if (rename(target.c_str(), old.c_str()) != 0 && errno != ENOENT) { return errno_error("rename " + target, errno); }
    if (rename(fresh.c_str(), target.c_str()) != 0) { return errno_error("rename " + fresh, errno); }
    (void)state::remove_tree(old); // what is left is removed by the next import
    auto durable = state::fsync_dir(root());
    if (!durable) { return std::move(durable).error(); }
    return true;
}

bool Store::packed() const { return access(disk().c_str(), R_OK) == 0; }

Result<Done> Store::pack() const
{
    auto images = list();
    if (!images) { return std::move(images).error(); }
    auto indexed = state::write_file_atomic(root() + "/" + std::string{index_name}, encode_store_index(*images), 0644);
    if (!indexed) { return indexed; }
    auto names = names_in(root());
    if (!names) { return std::move(names).error(); }

    const std::string fresh = disk() + ".new";
    std::vector<std::string> argv{
        "mksquashfs", root(),   fresh,         "-quiet", "-no-progress", "-noappend",           "-comp",     "lz4",
        "-b",         "131072", "-processors", "1",      "-mkfs-time",   std::to_string(epoch), "-no-xattrs"};
    if (geteuid() != 0) { argv.emplace_back("-all-root"); }
    std::vector<std::string> left_out;
    for (const auto& name : *names)
    {
        const bool known = name == index_name ||
                           std::any_of(images->begin(), images->end(), [&](const auto& i) { return i.folder == name; });
        if (!known) { left_out.push_back(name); }
    }
    if (!left_out.empty())
    {
        argv.emplace_back("-e");
        argv.insert(argv.end(), left_out.begin(), left_out.end());
    }
    for (const auto& image : *images)
    {
        set_epoch(root() + "/" + image.folder + "/image.json");
        set_epoch(root() + "/" + image.folder);
    }
    set_epoch(root() + "/" + std::string{index_name});
    set_epoch(root());
    unlink(fresh.c_str());
    auto packed = run_program(std::move(argv));
    if (!packed) { return std::move(packed).error().with_hint("apt-get install squashfs-tools"); }
    auto sized = whole_sectors(fresh);
    if (!sized) { return sized; }
    if (rename(fresh.c_str(), disk().c_str()) != 0) { return errno_error("rename " + fresh, errno); }
    return state::fsync_dir(folder_);
}

} // namespace dstack::image
