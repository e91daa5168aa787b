#include "services/logs/store.hpp"
#include "shared/state/files.hpp"
#include <algorithm>
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace dstack::logs
{

namespace
{
constexpr std::uint64_t largest_segment = 1024 * 1024;
/// A batch may go over a segment's size by this much.
constexpr std::size_t largest_read = 64 * 1024 * 1024;
} // namespace

LineStore::LineStore(std::string directory, std::uint64_t quota_bytes)
    : directory_(std::move(directory)), quota_(quota_bytes),
      segment_bytes_(std::min<std::uint64_t>(largest_segment, std::max<std::uint64_t>(quota_bytes / 8, 4096)))
{
}

LineStore::~LineStore()
{
    if (fd_ >= 0) { close(fd_); }
}

Result<std::unique_ptr<LineStore>> LineStore::open(std::string directory, std::uint64_t quota_bytes)
{
    auto made = state::make_dirs(directory, 0750);
    if (!made) { return std::move(made).error(); }
    std::unique_ptr<LineStore> store{new LineStore{std::move(directory), quota_bytes}};
    DIR* entries = opendir(store->directory_.c_str());
    if (entries == nullptr) { return errno_error("open " + store->directory_, errno); }
    while (const dirent* entry = readdir(entries))
    {
        if (const auto first = segment_first(entry->d_name)) { store->segments_.push_back({*first, 0}); }
    }
    closedir(entries);
    std::sort(store->segments_.begin(), store->segments_.end(),
              [](const Segment& a, const Segment& b) { return a.first < b.first; });
    for (Segment& segment : store->segments_)
    {
        struct stat info{};
        if (stat((store->directory_ + "/" + segment_name(segment.first)).c_str(), &info) == 0)
        {
            segment.bytes = static_cast<std::uint64_t>(info.st_size);
        }
    }
    auto recovered = store->recover_last();
    if (!recovered) { return std::move(recovered).error(); }
    return store;
}

Result<Done> LineStore::recover_last()
{
    while (!segments_.empty())
    {
        Segment& last = segments_.back();
        const std::string path = directory_ + "/" + segment_name(last.first);
        auto text = state::read_file(path, largest_read);
        if (!text) { return std::move(text).error(); }
        const Recovered found = recover(*text);
        next_ = std::max(next_, found.last_sequence == 0 ? last.first : found.last_sequence + 1);
        if (found.position)
        {
            position_ = *found.position;
            fd_ = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC | O_NOFOLLOW);
            if (fd_ < 0) { return errno_error("open " + path, errno); }
            if (ftruncate(fd_, static_cast<off_t>(found.valid_bytes)) != 0) { return errno_error("truncate " + path, errno); }
            last.bytes = found.valid_bytes;
            return Done{};
        }
        // Begun and not finished: its lines are still in the source's file.
        if (unlink(path.c_str()) != 0) { return errno_error("remove " + path, errno); }
        segments_.pop_back();
    }
    return Done{};
}

Result<Done> LineStore::new_segment()
{
    const std::string path = directory_ + "/" + segment_name(next_);
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0640);
    if (fd < 0) { return errno_error("create " + path, errno); }
    if (fd_ >= 0) { close(fd_); }
    fd_ = fd;
    segments_.push_back({next_, 0});
    return Done{};
}

Result<Done> LineStore::write_all(std::string_view bytes)
{
    const std::uint64_t before = segments_.back().bytes;
    while (!bytes.empty())
    {
        const ssize_t written = ::write(fd_, bytes.data(), bytes.size());
        if (written < 0 && errno == EINTR) { continue; }
        if (written <= 0)
        {
            Error error = errno_error("write " + directory_ + "/" + segment_name(segments_.back().first), errno);
            // If this fails too, the half batch has no end and is dropped on opening; until then it must not be read.
            if (ftruncate(fd_, static_cast<off_t>(before)) == 0) { segments_.back().bytes = before; }
            return error;
        }
        bytes.remove_prefix(static_cast<std::size_t>(written));
        segments_.back().bytes += static_cast<std::uint64_t>(written);
    }
    return Done{};
}

Result<Done> LineStore::append(std::vector<Line> lines, const Position& position)
{
    const std::lock_guard lock{mutex_};
    if (lines.empty() && position == position_) { return Done{}; }
    if (segments_.empty() || (segments_.back().bytes >= segment_bytes_ && next_ > segments_.back().first))
    {
        auto made = new_segment();
        if (!made) { return made; }
    }
    std::string bytes;
    std::uint64_t sequence = next_;
    for (Line& line : lines)
    {
        line.sequence = sequence++;
        encode(bytes, line);
    }
    encode(bytes, position);
    auto written = write_all(bytes);
    if (!written) { return written; }
    next_ = sequence;
    position_ = position;
    drop_oldest();
    return Done{};
}

void LineStore::drop_oldest()
{
    std::uint64_t total = 0;
    for (const Segment& segment : segments_) { total += segment.bytes; }
    while (segments_.size() > 1 && total > quota_)
    {
        const std::string path = directory_ + "/" + segment_name(segments_.front().first);
        if (unlink(path.c_str()) != 0 && errno != ENOENT) { return; } // tried again with the next batch
        total -= segments_.front().bytes;
        segments_.erase(segments_.begin());
    }
}

Position LineStore::position() const
{
    const std::lock_guard lock{mutex_};
    return position_;
}

std::uint64_t LineStore::next() const
{
    const std::lock_guard lock{mutex_};
    return next_;
}

std::uint64_t LineStore::first() const
{
    const std::lock_guard lock{mutex_};
    return segments_.empty() ? next_ : segments_.front().first;
}

std::uint64_t LineStore::bytes() const
{
    const std::lock_guard lock{mutex_};
    std::uint64_t total = 0;
    for (const Segment& segment : segments_) { total += segment.bytes; }
    return total;
}

Result<std::string> LineStore::read_segment(const Segment& segment) const
{
    auto text = state::read_file(directory_ + "/" + segment_name(segment.first), largest_read);
    if (text && text->size() > segment.bytes) { text->resize(segment.bytes); } // a batch that could not be taken back
    return text;
}

namespace
{
template <class Each>
void each_line(std::string_view segment, const Each& each)
{
    while (!segment.empty())
    {
        const auto newline = segment.find('\n');
        if (newline == std::string_view::npos) { return; }
        if (!segment.starts_with('@'))
        {
            auto line = decode_line(segment.substr(0, newline));
            if (line && !each(std::move(*line))) { return; }
        }
        segment.remove_prefix(newline + 1);
    }
}
} // namespace

Result<Page> LineStore::from(std::uint64_t sequence, PageLimits limits) const
{
    const std::lock_guard lock{mutex_};
    Page page;
    page.next = std::max<std::uint64_t>(sequence, 1);
    const std::uint64_t oldest = segments_.empty() ? next_ : segments_.front().first;
    if (page.next < oldest)
    {
        Line gap;
        gap.sequence = page.next;
        gap.channel = Channel::gap;
        gap.text = gap_text(page.next, oldest - 1, 0, "quota");
        page.lines.push_back(std::move(gap));
        page.next = oldest;
    }
    auto at = std::upper_bound(segments_.begin(), segments_.end(), page.next,
                               [](std::uint64_t value, const Segment& segment) { return value < segment.first; });
    if (at != segments_.begin()) { --at; }
    std::size_t bytes = 0;
    bool full = false;
    for (; at != segments_.end() && !full; ++at)
    {
        auto text = read_segment(*at);
        if (!text) { return std::move(text).error(); }
        each_line(*text,
                  [&](Line line)
                  {
                      if (line.sequence < page.next) { return true; }
                      const std::size_t size = json_size(line.text) + 100;
                      full = page.lines.size() >= limits.lines || (bytes > 0 && bytes + size > limits.bytes);
                      if (full) { return false; }
                      bytes += size;
                      page.next = line.sequence + 1;
                      page.lines.push_back(std::move(line));
                      return true;
                  });
    }
    return page;
}

Result<Page> LineStore::tail(PageLimits limits) const
{
    std::uint64_t begin = 1;
    {
        const std::lock_guard lock{mutex_};
        const std::uint64_t oldest = segments_.empty() ? next_ : segments_.front().first;
        begin = std::max<std::uint64_t>(oldest, next_ > limits.lines ? next_ - limits.lines : 1);
    }
    // The newest that fit: lines are numbered without holes, so only the bytes can be too many.
    auto page = from(begin, {limits.lines, std::size_t{64} << 20U});
    if (!page) { return page; }
    std::size_t bytes = 0;
    std::size_t keep = page->lines.size();
    while (keep > 0)
    {
        const std::size_t size = json_size(page->lines[keep - 1].text) + 100;
        if (bytes > 0 && bytes + size > limits.bytes) { break; }
        bytes += size;
        --keep;
    }
    page->lines.erase(page->lines.begin(), page->lines.begin() + static_cast<std::ptrdiff_t>(keep));
    return page;
}

} // namespace dstack::logs
