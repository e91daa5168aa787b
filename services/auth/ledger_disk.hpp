#pragma once
#include "shared/base/result.hpp"
#include "shared/crypto/bytes.hpp"
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::auth
{

/// A part of a file that nobody has looked at since the process began, and the record before it.
struct Unchecked
{
    std::string directory;
    std::uint64_t file = 0; ///< number of its first record
    std::uint64_t from = 0;
    std::uint64_t to = 0;
    std::uint64_t sequence = 0;
    std::string hash;
};
/// Looks at about `bytes` of it; what is left, or data_loss with the offset.
Result<Unchecked> check_part(Unchecked part, std::size_t bytes);

struct Space
{
    std::uint64_t free_bytes = 0;
    std::uint64_t total_bytes = 0;
    double share() const { return total_bytes == 0 ? 0.0 : static_cast<double>(free_bytes) / static_cast<double>(total_bytes); }
};
Space space_of(const std::string& directory);

/// The ledger's side of the disk: blocking calls, one at a time, on whatever thread. Nothing here knows what a record says.
class Disk
{
  public:
    struct Layout
    {
        std::vector<std::uint64_t> files; ///< numbers of their first records, oldest first; the last is the active one
        std::uint64_t active_bytes = 0;
        std::uint64_t signed_records = 0;
    };
    struct Opened
    {
        std::shared_ptr<Disk> disk;
        Layout layout;
        std::uint64_t sequence = 0; ///< of the last record
        std::string hash;
        std::string identity; ///< hash of the first record; empty when there is none
        std::string policy_hash;
        Unchecked unchecked;
    };
    static Result<Opened> open(const std::string& directory);
    Disk(const Disk&) = delete;
    Disk& operator=(const Disk&) = delete;
    ~Disk();

    /// Whole lines, behind those that are there: on disk when it returns without error, else as if never written.
    Result<Layout> write(std::string_view lines);
    /// "There are `records` of them, and the last has this hash."
    Result<Layout> sign(std::uint64_t records, const std::string& hash, const std::string& identity);
    /// Closes the active file and begins one with record `next`.
    Result<Layout> rotate(std::uint64_t next);
    /// Gives back the room that was reserved behind the last record.
    void trim();

  private:
    Disk() = default;
    class Loading;
    Result<Done> put(int fd, std::uint64_t offset, std::string_view bytes, const std::string& path) const;
    void reserve(std::uint64_t end, std::size_t batch);
    Result<Done> clean();
    Layout layout() const;

    std::string directory_;
    std::string path_;
    std::string checkpoints_path_;
    int lock_ = -1; ///< the directory
    int fd_ = -1;
    int checkpoints_fd_ = -1;
    std::vector<std::uint64_t> files_;
    std::uint64_t size_ = 0;     ///< bytes that are on disk
    std::uint64_t reserved_ = 0; ///< end of the zeroes behind them
    bool unclean_ = false;       ///< what is behind size_ is not known
    std::uint64_t checkpoints_size_ = 0;
    std::uint64_t checkpoint_number_ = 0;
    std::string checkpoint_hash_;
    std::uint64_t signed_records_ = 0;
    crypto::Bytes32 seed_{};
};

} // namespace dstack::auth
