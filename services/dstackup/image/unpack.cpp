#include "services/dstackup/image/unpack.hpp"
#include "shared/process/fd.hpp"
#include <array>
#include <cerrno>
#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <set>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace dstack::image
{

namespace
{
using process::Fd;

Fd open_in(int root, const std::string& path, std::uint64_t flags)
{
    open_how how{};
    how.flags = flags | O_CLOEXEC;
    how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
    return Fd{static_cast<int>(syscall(SYS_openat2, root, path.empty() ? "." : path.c_str(), &how, sizeof how))};
}

std::string join(const std::vector<std::string>& parts, std::size_t count)
{
    std::string out;
    for (std::size_t i = 0; i < count; ++i)
    {
        if (i > 0) { out += '/'; }
        out += parts[i];
    }
    return out;
}

std::vector<std::string> names_in(int folder)
{
    std::vector<std::string> out;
    Fd copy{openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    if (!copy) { return out; }
    DIR* dir = fdopendir(copy.release());
    if (dir == nullptr) { return out; }
    while (const dirent* entry = readdir(dir))
    {
        const std::string_view name{entry->d_name};
        if (name != "." && name != "..") { out.emplace_back(name); }
    }
    closedir(dir);
    return out;
}

/// Removes a name with all that is below it; follows nothing.
Result<Done> remove_at(int folder, const std::string& name)
{
    if (unlinkat(folder, name.c_str(), 0) == 0 || errno == ENOENT) { return Done{}; }
    if (errno != EISDIR && errno != EPERM) { return errno_error("remove " + name, errno); }
    {
        const Fd inner{openat(folder, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)};
        if (!inner) { return errno_error("open " + name, errno); }
        for (const auto& below : names_in(inner.get()))
        {
            auto removed = remove_at(inner.get(), below);
            if (!removed) { return removed; }
        }
    }
    if (unlinkat(folder, name.c_str(), AT_REMOVEDIR) != 0) { return errno_error("remove " + name, errno); }
    return Done{};
}

bool is_directory(int folder, const std::string& name)
{
    struct stat info
    {
    };
    return fstatat(folder, name.c_str(), &info, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(info.st_mode);
}

std::array<timespec, 2> times_of(const Entry& entry)
{
    timespec when{};
    when.tv_sec = static_cast<time_t>(entry.mtime);
    return {when, when};
}
} // namespace

struct Unpacker::State
{
    Fd root{};
    Limits limits{};
    std::uint64_t bytes = 0;
    std::uint64_t entries = 0;
    bool owner = geteuid() == 0;

    // Of the layer that is being applied:
    std::set<std::string> created{}; ///< an opaque mark spares them
    std::vector<std::pair<std::string, Entry>>
        directory_times{}; ///< set last: what is put into a directory changes its time

    Result<Fd> folder_of(const std::vector<std::string>& parts);
    Result<Done> put(TarReader& tar, const Entry& entry);
    Result<Done> whiteout(int folder, const std::string& where, const std::string& base);
    Result<Done> make(TarReader& tar, const Entry& entry, int folder, const std::string& base);
    Result<Done> write_file(TarReader& tar, const Entry& entry, int folder, const std::string& base);
    Result<Done> link(const Entry& entry, int folder, const std::string& base);
    Result<Done> own(const Entry& entry, int folder, const std::string& base) const;
};

/// The directory that the last part goes into; missing ones are made.
Result<Fd> Unpacker::State::folder_of(const std::vector<std::string>& parts)
{
    const std::size_t depth = parts.size() - 1;
    auto whole = open_in(root.get(), join(parts, depth), O_PATH | O_DIRECTORY);
    if (whole) { return open_in(root.get(), join(parts, depth), O_RDONLY | O_DIRECTORY); }
    for (std::size_t n = 0; n < depth; ++n)
    {
        const Fd above = open_in(root.get(), join(parts, n), O_RDONLY | O_DIRECTORY);
        if (!above) { return errno_error("open " + join(parts, n), errno); }
        if (open_in(root.get(), join(parts, n + 1), O_PATH | O_DIRECTORY)) { continue; }
        auto removed = remove_at(above.get(), parts[n]); // a file, or a link that leads nowhere
        if (!removed) { return std::move(removed).error(); }
        if (mkdirat(above.get(), parts[n].c_str(), 0755) != 0)
        {
            return errno_error("mkdir " + join(parts, n + 1), errno);
        }
    }
    auto folder = open_in(root.get(), join(parts, depth), O_RDONLY | O_DIRECTORY);
    if (!folder) { return errno_error("open " + join(parts, depth), errno); }
    return folder;
}

Result<Done> Unpacker::State::whiteout(int folder, const std::string& where, const std::string& base)
{
    if (base != ".wh..wh..opq")
    {
        const auto name = base.substr(4);
        if (name.empty() || name == "." || name == "..")
        {
            return Error{Errc::invalid_argument, "a whiteout of no name", {}, {}};
        }
        return remove_at(folder, name);
    }
    for (const auto& name : names_in(folder))
    {
        if (created.contains(where.empty() ? name : where + "/" + name)) { continue; }
        auto removed = remove_at(folder, name);
        if (!removed) { return removed; }
    }
    return Done{};
}

Result<Done> Unpacker::State::put(TarReader& tar, const Entry& entry)
{
    if (++entries > limits.entries)
    {
        return Error{
            Errc::resource_exhausted, "the image has more than " + std::to_string(limits.entries) + " files", {}, {}};
    }
    auto parts = safe_parts(entry.name);
    if (!parts) { return std::move(parts).error(); }
    if (parts->empty()) { return Done{}; } // the root itself
    auto folder = folder_of(*parts);
    if (!folder) { return std::move(folder).error(); }
    const std::string& base = parts->back();
    if (base.starts_with(".wh.")) { return whiteout(folder->get(), join(*parts, parts->size() - 1), base); }
    auto made = make(tar, entry, folder->get(), base);
    if (!made) { return std::move(made).error().within(entry.name); }
    const auto path = join(*parts, parts->size());
    created.insert(path);
    if (entry.kind == Entry::Kind::directory) { directory_times.emplace_back(path, entry); }
    return Done{};
}

Result<Done> Unpacker::State::make(TarReader& tar, const Entry& entry, int folder, const std::string& base)
{
    const bool keep = entry.kind == Entry::Kind::directory && is_directory(folder, base);
    if (entry.kind == Entry::Kind::other) { return Done{}; }
    if (entry.kind == Entry::Kind::hardlink) { return link(entry, folder, base); }
    if (!keep)
    {
        auto removed = remove_at(folder, base);
        if (!removed) { return removed; }
    }
    int failed = 0;
    switch (entry.kind)
    {
    case Entry::Kind::file:
    {
        auto written = write_file(tar, entry, folder, base);
        if (!written) { return written; }
        break;
    }
    case Entry::Kind::directory:
        failed = keep ? 0 : mkdirat(folder, base.c_str(), 0755);
        break;
    case Entry::Kind::symlink:
        failed = symlinkat(entry.target.c_str(), folder, base.c_str());
        break;
    case Entry::Kind::fifo:
        failed = mkfifoat(folder, base.c_str(), 0600);
        break;
    case Entry::Kind::hardlink:
    case Entry::Kind::other:
        break;
    }
    if (failed != 0) { return errno_error("create", errno); }
    return own(entry, folder, base);
}

Result<Done> Unpacker::State::own(const Entry& entry, int folder, const std::string& base) const
{
    if (owner && fchownat(folder, base.c_str(), entry.uid, entry.gid, AT_SYMLINK_NOFOLLOW) != 0)
    {
        return errno_error("chown", errno);
    }
    if (entry.kind != Entry::Kind::symlink && fchmodat(folder, base.c_str(), entry.mode, 0) != 0)
    {
        return errno_error("chmod", errno);
    }
    const auto times = times_of(entry);
    if (utimensat(folder, base.c_str(), times.data(), AT_SYMLINK_NOFOLLOW) != 0)
    {
        return errno_error("utimes", errno);
    }
    return Done{};
}

Result<Done> Unpacker::State::write_file(TarReader& tar, const Entry& entry, int folder, const std::string& base)
{
    bytes += entry.size;
    if (bytes > limits.bytes)
    {
        return Error{Errc::resource_exhausted,
                     "the image is larger than " + std::to_string(limits.bytes >> 20) + " MiB unpacked",
                     {},
                     {}};
    }
    const Fd out{openat(folder, base.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600)};
    if (!out) { return errno_error("create", errno); }
    std::array<char, 64 * 1024> buffer{};
    while (true)
    {
        auto got = tar.read(buffer);
        if (!got) { return std::move(got).error(); }
        if (*got == 0) { return Done{}; }
        std::size_t written = 0;
        while (written < *got)
        {
            const ssize_t n = write(out.get(), buffer.data() + written, *got - written);
            if (n < 0 && errno == EINTR) { continue; }
            if (n < 0) { return errno_error("write", errno); }
            written += static_cast<std::size_t>(n);
        }
    }
}

Result<Done> Unpacker::State::link(const Entry& entry, int folder, const std::string& base)
{
    auto parts = safe_parts(entry.target);
    if (!parts) { return std::move(parts).error(); }
    if (parts->empty()) { return Error{Errc::invalid_argument, "a hard link to nothing", {}, {}}; }
    const Fd from = open_in(root.get(), join(*parts, parts->size() - 1), O_RDONLY | O_DIRECTORY);
    if (!from) { return errno_error("hard link to " + entry.target, errno); }
    struct stat there
    {
    };
    struct stat here
    {
    };
    if (fstatat(from.get(), parts->back().c_str(), &there, AT_SYMLINK_NOFOLLOW) != 0)
    {
        return errno_error("hard link to " + entry.target, errno);
    }
    const bool same = fstatat(folder, base.c_str(), &here, AT_SYMLINK_NOFOLLOW) == 0 && here.st_ino == there.st_ino &&
                      here.st_dev == there.st_dev;
    if (same) { return Done{}; }
    auto removed = remove_at(folder, base);
    if (!removed) { return removed; }
    if (linkat(from.get(), parts->back().c_str(), folder, base.c_str(), 0) != 0)
    {
        return errno_error("hard link to " + entry.target, errno);
    }
    return Done{};
}

Unpacker::Unpacker(std::unique_ptr<State> state) : state_(std::move(state)) {}
Unpacker::Unpacker(Unpacker&&) noexcept = default;
Unpacker::~Unpacker() = default;

Result<Unpacker> Unpacker::open(const std::string& root, Limits limits)
{
    auto state = std::make_unique<State>();
    state->root = Fd{::open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    if (!state->root) { return errno_error("open " + root, errno); }
    state->limits = limits;
    return Unpacker{std::move(state)};
}

Result<Done> Unpacker::apply(Source& layer)
{
    state_->created.clear();
    state_->directory_times.clear();
    TarReader tar{layer};
    while (true)
    {
        auto entry = tar.next();
        if (!entry) { return std::move(entry).error(); }
        if (!*entry) { break; }
        auto put = state_->put(tar, **entry);
        if (!put) { return put; }
    }
    for (auto it = state_->directory_times.rbegin(); it != state_->directory_times.rend(); ++it)
    {
        const auto times = times_of(it->second);
        const Fd folder = open_in(state_->root.get(), it->first, O_RDONLY | O_DIRECTORY);
        if (folder) { futimens(folder.get(), times.data()); }
    }
    return Done{};
}

} // namespace dstack::image
