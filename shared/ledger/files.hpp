#pragma once
#include "shared/base/result.hpp"
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::ledger
{

/// The file that is written now; full ones are renamed to decisions-<number of the first record, 12 digits>.ndjson.
inline constexpr std::string_view active_name = "decisions.ndjson";
inline constexpr std::string_view checkpoints_name = "checkpoints.ndjson";
inline constexpr std::string_view secret_name = "checkpoint.key";
inline constexpr std::string_view public_name = "checkpoint.pub";
inline constexpr std::size_t max_line = 1024 * 1024;

std::string sealed_name(std::uint64_t first);

struct Segment
{
    std::string path;
    std::uint64_t first = 0; ///< number of its first record; 0: the active one, whose name does not say
};
/// The files of a ledger, oldest first, the active one (when it is there) last.
Result<std::vector<Segment>> list_segments(const std::string& directory);

class File
{
  public:
    static Result<File> open(const std::string& path);
    File(File&& other) noexcept;
    File& operator=(File&& other) noexcept;
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    ~File();
    int fd() const { return fd_; }
    Result<std::uint64_t> size() const;

  private:
    explicit File(int fd) : fd_(fd) {}
    int fd_ = -1;
};

/// Lines of a part of a file, each with the offset of its end.
class LineReader
{
  public:
    LineReader(int fd, std::uint64_t offset) : fd_(fd), offset_(offset) {}
    /// False at the end; `rest()` is then what has no newline. data_loss when a line is longer than max_line.
    Result<bool> next(std::string_view& line);
    /// Where the next line starts.
    std::uint64_t position() const { return offset_ + consumed_ + start_; }
    std::string_view rest() const { return std::string_view{buffer_}.substr(start_); }

  private:
    int fd_;
    std::uint64_t offset_;
    std::uint64_t consumed_ = 0;
    std::string buffer_;
    std::size_t start_ = 0;
    std::size_t scanned_ = 0;
};

/// Calls `take` with the lines of [0, end), the last one first, until it says false. `end` must be the end of a line.
/// False when `take` said so.
Result<bool> read_backwards(int fd, std::uint64_t end, const std::function<bool(std::string_view)>& take);

/// Where record `sequence` starts, among the whole lines of [0, end); not_found when it is not there.
Result<std::uint64_t> find_record(int fd, std::uint64_t end, std::uint64_t sequence);

/// The last whole line of [0, end): nullopt-like empty when there is none.
Result<std::string> last_line(int fd, std::uint64_t end);

/// What is behind the last newline. Room that was reserved for more records is zeroes.
struct Tail
{
    std::uint64_t start = 0; ///< the end of the last whole line
    std::uint64_t torn = 0;  ///< bytes up to the last that is not zero; 0: nothing there
};
Tail tail_of(std::string_view rest, std::uint64_t position);

} // namespace dstack::ledger
