#pragma once
#include "services/logs/lines.hpp"
#include "shared/base/result.hpp"
#include <map>
#include <memory>
#include <mutex>

namespace dstack::logs
{

/// Lines that a reader gets.
struct Page
{
    std::vector<Line> lines; ///< oldest first; begins with a gap when what was asked for is gone
    std::uint64_t next = 1;  ///< go on from here
};

struct PageLimits
{
    std::size_t lines = 200;
    std::size_t bytes = 512 * 1024; ///< of the texts as JSON; at least one line is given
};

/// The kept lines of one VM or service: segments in one directory, oldest removed when over the quota. Blocking; may be
/// used from several threads.
class LineStore
{
  public:
    /// `directory` is created when missing; what a crash cut off is dropped.
    static Result<std::unique_ptr<LineStore>> open(std::string directory, std::uint64_t quota_bytes);
    LineStore(const LineStore&) = delete;
    LineStore& operator=(const LineStore&) = delete;
    ~LineStore();

    /// Numbers the lines and keeps them together with where they came from: both or neither survive a crash of this
    /// process. On an error (disk full) nothing is kept.
    Result<Done> append(std::vector<Line> lines, const Position& position);
    Position position() const;
    /// Of the next line.
    std::uint64_t next() const;
    /// Of the oldest line that is still there; `next` when there is none.
    std::uint64_t first() const;
    std::uint64_t bytes() const;
    Result<Page> from(std::uint64_t sequence, PageLimits limits) const;
    Result<Page> tail(PageLimits limits) const;

  private:
    struct Segment
    {
        std::uint64_t first = 0;
        std::uint64_t bytes = 0;
    };
    LineStore(std::string directory, std::uint64_t quota_bytes);
    Result<Done> recover_last();
    Result<Done> new_segment();
    Result<Done> write_all(std::string_view bytes);
    void drop_oldest();
    Result<std::string> read_segment(const Segment& segment) const;

    std::string directory_;
    std::uint64_t quota_;
    std::uint64_t segment_bytes_;
    mutable std::mutex mutex_; ///< of all below
    std::vector<Segment> segments_;
    int fd_ = -1; ///< of the last segment
    Position position_;
    std::uint64_t next_ = 1;
};

} // namespace dstack::logs
