#pragma once
#include "services/logs/store.hpp"
#include <cstdint>
#include <string>

namespace dstack::logs
{

/// What was lost in a step, for the `log.gap` event.
struct Loss
{
    std::uint64_t sequence = 0; ///< of the gap's record
    std::uint64_t bytes = 0;    ///< 0: unknown
    std::string reason;
};

struct Step
{
    std::uint64_t next = 1;   ///< sequence of the next line
    std::size_t lines = 0;    ///< that were added
    bool more = false;        ///< there is more to read now
    bool gone = false;        ///< the file is not there (any more), and all of it was read
    std::vector<Loss> losses;
};

struct TailerLimits
{
    std::size_t step_bytes = 256 * 1024;
    std::uint64_t flood_bytes = 16ULL << 20U;
};

/// Copies the lines of one growing file into a LineStore, across rotation, truncation and its own death. Blocking; used
/// from one thread at a time. Every loss becomes a gap line.
class Tailer
{
  public:
    Tailer(std::string path, Channel channel, LineStore& store, TailerLimits limits);
    Tailer(const Tailer&) = delete;
    Tailer& operator=(const Tailer&) = delete;
    ~Tailer();

    /// `now_ms`: unix time. An error (no permission, disk full) leaves everything as it was: try again later.
    Result<Step> step(std::uint64_t now_ms);

  private:
    Result<bool> open_file(std::vector<Line>& lines, Step& step);
    Result<Done> keep(std::vector<Line> lines, Step& step);
    bool same_head(int fd, const Position& position) const;
    void take_old_copy(std::vector<Line>& lines, Step& step, std::string_view reason);
    void add(std::vector<Line>& lines, std::string_view text) const;
    void add_gap(std::vector<Line>& lines, Step& step, std::uint64_t bytes, std::string reason) const;
    void start_over(std::uint64_t device, std::uint64_t inode);
    void learn_head();
    void close_file();

    std::string path_;
    Channel channel_;
    LineStore& store_;
    TailerLimits limits_;
    Position position_;
    int fd_ = -1;
    std::uint64_t now_ms_ = 0;
};

} // namespace dstack::logs
