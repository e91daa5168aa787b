#include "shared/state/files.hpp"
#include <array>
#include <cerrno>
#include <cstdlib>
#include <fcntl.h>
#include <filesystem>
#include <sys/file.h>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>
#include <utility>

namespace dstack::state
{

namespace
{
class Fd
{
  public:
    explicit Fd(int fd) : fd_(fd) {}
    Fd(const Fd&) = delete;
    Fd& operator=(const Fd&) = delete;
    ~Fd()
    {
        if (fd_ >= 0) { ::close(fd_); }
    }
    int get() const { return fd_; }
    /// close(2) reports what a network file system or quota found out late.
    int close_checked() { return ::close(std::exchange(fd_, -1)); }

  private:
    int fd_;
};

int open_retry(const std::string& path, int flags, mode_t mode = 0)
{
    int fd = -1;
    do
    {
        fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
    } while (fd < 0 && errno == EINTR);
    return fd;
}

std::string parent_of(const std::string& path)
{
    const auto slash = path.find_last_of('/');
    if (slash == std::string::npos) { return "."; }
    return slash == 0 ? "/" : path.substr(0, slash);
}

Result<Done> write_all(int fd, std::string_view bytes, const std::string& path)
{
    while (!bytes.empty())
    {
        const ssize_t put = ::write(fd, bytes.data(), bytes.size());
        if (put < 0 && errno == EINTR) { continue; }
        if (put < 0) { return errno_error("write " + path, errno); }
        bytes.remove_prefix(static_cast<std::size_t>(put));
    }
    return Done{};
}
} // namespace

Result<std::string> read_file(const std::string& path, std::size_t max_bytes)
{
    const Fd file{open_retry(path, O_RDONLY | O_NOCTTY | O_NONBLOCK)};
    if (file.get() < 0) { return errno_error("open " + path, errno); }
    struct stat facts = {};
    if (::fstat(file.get(), &facts) != 0) { return errno_error("stat " + path, errno); }
    if (S_ISDIR(facts.st_mode)) { return errno_error("read " + path, EISDIR); }
    const auto too_large = [&]
    {
        return Error{Errc::resource_exhausted, path + ": larger than " + std::to_string(max_bytes) + " bytes", {}, {}};
    };
    if (S_ISREG(facts.st_mode) && static_cast<std::size_t>(facts.st_size) > max_bytes) { return too_large(); }
    std::string text;
    text.reserve(static_cast<std::size_t>(facts.st_size));
    std::array<char, 65536> buffer{};
    for (;;)
    {
        const ssize_t got = ::read(file.get(), buffer.data(), buffer.size());
        if (got < 0 && errno == EINTR) { continue; }
        if (got < 0) { return errno_error("read " + path, errno); }
        if (got == 0) { return text; }
        text.append(buffer.data(), static_cast<std::size_t>(got));
        if (text.size() > max_bytes) { return too_large(); }
    }
}

Result<Done> write_file_atomic(const std::string& path, std::string_view bytes, mode_t mode)
{
    const std::string dir = parent_of(path);
    const auto slash = path.find_last_of('/');
    std::string temp = dir + "/." + path.substr(slash == std::string::npos ? 0 : slash + 1) + ".XXXXXX";
    Fd file{::mkostemp(temp.data(), O_CLOEXEC)};
    if (file.get() < 0) { return errno_error("create a file in " + dir, errno); }
    const auto write_it = [&]() -> Result<Done>
    {
        if (::fchmod(file.get(), mode) != 0) { return errno_error("chmod " + temp, errno); }
        auto written = write_all(file.get(), bytes, path);
        if (!written) { return written; }
        if (::fsync(file.get()) != 0) { return errno_error("fsync " + path, errno); }
        if (file.close_checked() != 0) { return errno_error("close " + path, errno); }
        if (::rename(temp.c_str(), path.c_str()) != 0) { return errno_error("rename to " + path, errno); }
        return Done{};
    };
    auto done = write_it();
    if (!done)
    {
        ::unlink(temp.c_str());
        return done;
    }
    return fsync_dir(dir);
}

Result<Done> make_dirs(const std::string& path, mode_t mode)
{
    std::size_t end = 0;
    while (end < path.size())
    {
        const auto slash = path.find('/', end + 1);
        end = slash == std::string::npos ? path.size() : slash;
        const std::string part = path.substr(0, end);
        if (::mkdir(part.c_str(), mode) == 0) { continue; }
        const int why = errno;
        struct stat facts = {};
        if (::stat(part.c_str(), &facts) == 0)
        {
            if (S_ISDIR(facts.st_mode)) { continue; }
            return errno_error("create directory " + part, ENOTDIR);
        }
        return errno_error("create directory " + part, why);
    }
    return Done{};
}

Result<Done> remove_tree(const std::string& path)
{
    std::error_code why;
    std::filesystem::remove_all(path, why);
    if (why) { return errno_error("remove " + path, why.value()); }
    return Done{};
}

Result<Done> fsync_dir(const std::string& path)
{
    const Fd dir{open_retry(path, O_RDONLY | O_DIRECTORY)};
    if (dir.get() < 0) { return errno_error("open " + path, errno); }
    if (::fsync(dir.get()) != 0) { return errno_error("fsync " + path, errno); }
    return Done{};
}

FileLock::FileLock(FileLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

FileLock& FileLock::operator=(FileLock&& other) noexcept
{
    std::swap(fd_, other.fd_);
    return *this;
}

FileLock::~FileLock()
{
    if (fd_ >= 0) { ::close(fd_); }
}

Result<FileLock> FileLock::acquire(const std::string& path, std::chrono::milliseconds limit)
{
    const auto until = std::chrono::steady_clock::now() + limit;
    FileLock lock{open_retry(path, O_RDWR | O_CREAT, 0600)};
    if (lock.fd_ < 0) { return errno_error("open " + path, errno); }
    for (;;)
    {
        if (::flock(lock.fd_, LOCK_EX | LOCK_NB) == 0) { return lock; }
        if (errno != EWOULDBLOCK && errno != EINTR) { return errno_error("lock " + path, errno); }
        if (std::chrono::steady_clock::now() >= until)
        {
            return Error{Errc::unavailable, "lock " + path + ": held by another process", {}, {}};
        }
        std::this_thread::sleep_for(std::chrono::milliseconds{5});
    }
}

} // namespace dstack::state
