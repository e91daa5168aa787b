#pragma once
#include "services/dstackup/image/source.hpp"
#include <cstdint>
#include <optional>
#include <vector>

namespace dstack::image
{

/// One member of a tar archive.
struct Entry
{
    enum class Kind
    {
        file,
        directory,
        symlink,
        hardlink,
        fifo,
        other
    };
    std::string name{};   ///< as in the archive
    std::string target{}; ///< of links
    Kind kind = Kind::other;
    std::uint32_t mode = 0; ///< permission bits
    std::uint32_t uid = 0;
    std::uint32_t gid = 0;
    std::int64_t mtime = 0; ///< unix seconds
    std::uint64_t size = 0; ///< bytes of a file
};

/// Reads ustar, GNU long names and pax headers (POSIX.1-2001; tar(5)). Data that is not read is skipped by `next`.
class TarReader
{
  public:
    explicit TarReader(Source& source) : source_(source) {}
    /// The next member; nothing at the end of the archive. data_loss for what is no tar archive or is cut off.
    Result<std::optional<Entry>> next();
    /// The data of the member that `next` gave last; 0 at its end.
    Result<std::size_t> read(std::span<char> out);

  private:
    Result<Done> skip(std::uint64_t bytes);
    Result<std::string> metadata(std::uint64_t size);
    Source& source_;
    std::uint64_t left_ = 0;    ///< data of the current member
    std::uint64_t padding_ = 0; ///< after it
};

/// The parts of a member's name below the root: "./a//b" is {"a","b"}. Refuses "..", a name that is absolute is taken
/// as below the root.
Result<std::vector<std::string>> safe_parts(std::string_view name);

} // namespace dstack::image
