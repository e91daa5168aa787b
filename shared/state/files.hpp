#pragma once
#include "shared/base/result.hpp"
#include <chrono>
#include <cstddef>
#include <string>
#include <string_view>
#include <sys/types.h>

namespace dstack::state
{

// Blocking calls: short ones at start-up may run on the loop, everything else goes through offload().
// Errors carry errno's class: ENOENT not_found, EACCES permission_denied, ENOSPC and EDQUOT resource_exhausted.

/// The whole file; resource_exhausted when it is larger than `max_bytes`. Only regular files (and what looks like one).
Result<std::string> read_file(const std::string& path, std::size_t max_bytes);

/// Replaces `path` as a whole: temp file in the same directory, fsync, rename, fsync of the directory. After a crash
/// there is the old content or the new one. `mode` is set exactly (no umask). On an error the old file is untouched.
Result<Done> write_file_atomic(const std::string& path, std::string_view bytes, mode_t mode);

/// Creates the missing directories of `path` with `mode` (as umask allows); one that exists is fine.
Result<Done> make_dirs(const std::string& path, mode_t mode);

/// Removes a file or a directory with all it holds; follows no symbolic link; something that is not there is fine.
Result<Done> remove_tree(const std::string& path);

/// Makes renames and unlinks in the directory durable.
Result<Done> fsync_dir(const std::string& path);

/// Exclusive flock(2) on a file that is created when missing and never removed. Released by the destructor and by death.
class FileLock
{
  public:
    /// Waits at most `limit` (blocking, polled); then unavailable. Zero: one try.
    static Result<FileLock> acquire(const std::string& path, std::chrono::milliseconds limit);
    FileLock(FileLock&& other) noexcept;
    FileLock& operator=(FileLock&& other) noexcept;
    FileLock(const FileLock&) = delete;
    FileLock& operator=(const FileLock&) = delete;
    ~FileLock();

  private:
    explicit FileLock(int fd) : fd_(fd) {}
    int fd_ = -1;
};

} // namespace dstack::state
