#include "services/auth/policy_file.hpp"
#include "shared/base/time.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/process/fd.hpp"
#include "shared/state/files.hpp"
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <fcntl.h>
#include <malloc.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

namespace dstack::auth
{

namespace
{

using Identity = PolicyFile::Identity;

constexpr std::size_t max_bytes = 64 * 1024 * 1024;
constexpr milliseconds lock_limit{5000};
constexpr std::size_t many_apps = 1000;
/// Two writes within one tick of the kernel's clock leave the same times: a file that is younger than this when it is
/// read is read again next time.
constexpr std::int64_t tick_ns = 50'000'000;

std::int64_t ns(const timespec& time) { return static_cast<std::int64_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec; }

Identity identity_of(const struct stat& info)
{
    Identity out;
    out.exists = true;
    out.device = info.st_dev;
    out.inode = info.st_ino;
    out.size = info.st_size;
    out.modified_ns = ns(info.st_mtim);
    out.changed_ns = ns(info.st_ctim);
    return out;
}

Identity identify(const std::string& path)
{
    struct stat info
    {
    };
    return ::stat(path.c_str(), &info) == 0 ? identity_of(info) : Identity{};
}

struct Loaded
{
    std::shared_ptr<const Snapshot> snapshot;
    Identity identity;
    bool settled = true;
};

using process::Fd;

Result<std::string> read_all(int fd, const std::string& path, std::int64_t size)
{
    // One allocation of the size that it has; a byte more shows that it grew.
    constexpr std::size_t more = 65536;
    std::string text(std::min(static_cast<std::size_t>(std::max<std::int64_t>(size, 0)), max_bytes) + 1, '\0');
    std::size_t used = 0;
    for (;;)
    {
        if (used == text.size()) { text.resize(text.size() + more); }
        const ssize_t got = ::read(fd, text.data() + used, text.size() - used);
        if (got < 0 && errno == EINTR) { continue; }
        if (got < 0) { return errno_error("read " + path, errno); }
        if (got == 0)
        {
            text.resize(used);
            return text;
        }
        used += static_cast<std::size_t>(got);
        if (used > max_bytes) { return Error{Errc::resource_exhausted, path + ": larger than 64 MiB", {}, {}}; }
    }
}

/// One try; nullopt in `text` when the file changed under the reader.
Result<std::optional<std::string>> read_once(const std::string& path, Identity& identity)
{
    const Fd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    if (fd.get() < 0) { return errno_error("open " + path, errno); }
    struct stat before
    {
    };
    struct stat after
    {
    };
    if (::fstat(fd.get(), &before) != 0) { return errno_error("stat " + path, errno); }
    if (!S_ISREG(before.st_mode)) { return Error{Errc::invalid_argument, path + ": is no regular file", {}, {}}; }
    auto text = read_all(fd.get(), path, before.st_size);
    if (!text) { return std::move(text).error(); }
    if (::fstat(fd.get(), &after) != 0) { return errno_error("stat " + path, errno); }
    identity = identity_of(after);
    if (!(identity == identity_of(before))) { return std::optional<std::string>{}; }
    return std::optional{std::move(*text)};
}

/// `before`, which may be null, is given back when the text is still the same.
Loaded load(const std::string& path, std::shared_ptr<const Snapshot> before)
{
    Loaded out;
    auto snapshot = std::make_shared<Snapshot>();
    out.snapshot = snapshot;
    out.identity = identify(path);
    Result<std::optional<std::string>> text{std::optional<std::string>{}};
    for (int tries = 0; tries < 5 && text && !*text; ++tries) { text = read_once(path, out.identity); }
    const auto now =
        std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch());
    out.settled = now.count() - out.identity.changed_ns > tick_ns;
    if (!text)
    {
        snapshot->error = text.error().message;
        return out;
    }
    if (!*text)
    {
        snapshot->error = path + ": somebody is writing it";
        out.settled = false;
        return out;
    }
    snapshot->ground.policy_hash = crypto::to_hex(crypto::sha256(**text));
    if (before && before->ground.policy_hash == snapshot->ground.policy_hash)
    {
        out.snapshot = std::move(before);
        return out;
    }
    auto policy = parse_policy(**text);
    if (policy)
    {
        snapshot->policy = std::move(*policy);
        snapshot->ground.gateway_app_id = snapshot->policy->gateway_app_id;
    }
    else { snapshot->error = path + ": " + policy.error().message; }
    return out;
}

Result<PolicyFile::Changed> change_file(const std::string& path, const PolicyFile::Edit& edit, PolicyFile::Missing missing)
{
    auto lock = state::FileLock::acquire(path + ".lock", lock_limit);
    if (!lock) { return std::move(lock).error(); }
    auto text = state::read_file(path, max_bytes);
    if (!text && text.error().code == Errc::not_found && missing == PolicyFile::Missing::is_empty) { text = std::string{}; }
    if (!text)
    {
        return std::move(text).error().with_hint("without a policy file every boot is denied; write one first");
    }
    auto edited = edit(*text);
    if (!edited) { return std::move(edited).error(); }
    const std::string& now = *edited ? **edited : *text;
    PolicyFile::Changed out{edited->has_value(), crypto::to_hex(crypto::sha256(now))};
    if (!out.changed) { return out; }
    struct stat info
    {
    };
    const mode_t mode = ::stat(path.c_str(), &info) == 0 ? info.st_mode & 07777 : mode_t{0644};
    auto written = state::write_file_atomic(path, now, mode);
    if (!written) { return std::move(written).error(); }
    return out;
}

/// What a large policy held goes back to the system, and taking it apart is not the loop's work.
Task<> take_apart(Loop& loop, std::shared_ptr<const Snapshot> old)
{
    auto job = [snapshot = std::move(old)]() mutable
    {
        const bool large = snapshot->policy && snapshot->policy->apps.size() > many_apps;
        snapshot.reset();
        if (large) { ::malloc_trim(0); }
        return true;
    };
    co_await offload(loop, std::move(job));
}

} // namespace

void PolicyFile::look() { fresh_ = cached_ != nullptr && settled_ && identify(path_) == identity_; }

std::uint64_t PolicyFile::age_ms() const
{
    const auto written = static_cast<std::uint64_t>(std::max<std::int64_t>(identity_.modified_ns, 0)) / 1'000'000;
    const std::uint64_t now = unix_ms();
    return identity_.exists && now > written ? now - written : 0;
}

Task<std::shared_ptr<const Snapshot>> PolicyFile::current()
{
    const std::uint64_t asked = ++turn_;
    const Identity seen = identify(path_);
    if (is_fresh(seen)) { co_return cached_; }
    auto guard = co_await loading_.lock();
    if (cached_ != nullptr && load_turn_ > asked) { co_return cached_; } // loaded while this one waited
    const std::uint64_t began = ++turn_;
    auto job = [path = path_, before = cached_]() mutable { return load(path, std::move(before)); };
    auto loaded = co_await offload(loop_, std::move(job)); // it holds what may be retired
    auto old = std::exchange(cached_, std::move(loaded.snapshot));
    if (old && old != cached_) { retire(std::move(old)); }
    identity_ = loaded.identity;
    settled_ = loaded.settled;
    load_turn_ = began;
    co_return cached_;
}

void PolicyFile::retire(std::shared_ptr<const Snapshot> old) { retired_.spawn(take_apart(loop_, std::move(old))); }

Task<Result<PolicyFile::Changed>> PolicyFile::change(Edit edit)
{
    co_return co_await change(std::move(edit), Missing::is_error);
}

Task<Result<std::string>> PolicyFile::text(std::size_t max_bytes)
{
    auto job = [path = path_, max_bytes] { return state::read_file(path, max_bytes); };
    auto text = co_await offload(loop_, job);
    co_return text;
}

Task<Result<PolicyFile::Changed>> PolicyFile::change(Edit edit, Missing missing)
{
    auto guard = co_await writing_.lock();
    auto job = [path = path_, edit = std::move(edit), missing] { return change_file(path, edit, missing); };
    auto changed = co_await offload(loop_, job);
    co_return changed;
}

Result<bool> PolicyFile::create(std::string_view text)
{
    if (identify(path_).exists) { return false; }
    const auto slash = path_.rfind('/');
    if (slash != std::string::npos && slash > 0)
    {
        auto made = state::make_dirs(path_.substr(0, slash), 0755);
        if (!made) { return std::move(made).error(); }
    }
    auto lock = state::FileLock::acquire(path_ + ".lock", lock_limit);
    if (!lock) { return std::move(lock).error(); }
    if (identify(path_).exists) { return false; }
    auto written = state::write_file_atomic(path_, text, 0644);
    if (!written) { return std::move(written).error(); }
    return true;
}

} // namespace dstack::auth
