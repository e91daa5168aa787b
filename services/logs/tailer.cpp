#include "services/logs/tailer.hpp"
#include <algorithm>
#include <array>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace dstack::logs
{

namespace
{
constexpr std::size_t largest_old_copy = 8 * 1024 * 1024;

std::string read_at(int fd, std::uint64_t offset, std::size_t size)
{
    std::string out(size, '\0');
    std::size_t have = 0;
    while (have < size)
    {
        const ssize_t got = pread(fd, out.data() + have, size - have, static_cast<off_t>(offset + have));
        if (got < 0 && errno == EINTR) { continue; }
        if (got <= 0) { break; }
        have += static_cast<std::size_t>(got);
    }
    out.resize(have);
    return out;
}

std::uint64_t size_of(const struct stat& info) { return static_cast<std::uint64_t>(info.st_size); }
} // namespace

Tailer::Tailer(std::string path, Channel channel, LineStore& store, TailerLimits limits)
    : path_(std::move(path)), channel_(channel), store_(store), limits_(limits), position_(store.position())
{
}

Tailer::~Tailer() { close_file(); }

void Tailer::close_file()
{
    if (fd_ >= 0) { close(fd_); }
    fd_ = -1;
}

void Tailer::add(std::vector<Line>& lines, std::string_view text) const
{
    lines.push_back({0, now_ms_, channel_, std::string{text}});
}

void Tailer::add_gap(std::vector<Line>& lines, Step& step, std::uint64_t bytes, std::string reason) const
{
    const std::uint64_t sequence = store_.next() + lines.size();
    lines.push_back({0, now_ms_, Channel::gap, gap_text(sequence, sequence, bytes, reason)});
    step.losses.push_back({sequence, bytes, std::move(reason)});
}

void Tailer::start_over(std::uint64_t device, std::uint64_t inode)
{
    position_ = Position{};
    position_.device = device;
    position_.inode = inode;
}

bool Tailer::same_head(int fd, const Position& position) const
{
    return head_hash(read_at(fd, 0, position.head_size)) == position.head_hash || position.head_size == 0;
}

void Tailer::learn_head()
{
    if (position_.head_size >= max_head_bytes || position_.offset == position_.head_size) { return; }
    const std::string head = read_at(fd_, 0, std::min(position_.offset, max_head_bytes));
    position_.head_size = head.size();
    position_.head_hash = head_hash(head);
}

/// The file was cut in place. Whoever rotates by copying leaves what was there in PATH.1: the part that we had not read
/// yet is taken from it; without it, it is lost.
void Tailer::take_old_copy(std::vector<Line>& lines, Step& step, std::string_view reason)
{
    const int fd = ::open((path_ + ".1").c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    struct stat info{};
    const bool usable = fd >= 0 && fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && position_.head_size > 0 &&
                        size_of(info) >= position_.offset && same_head(fd, position_);
    if (usable)
    {
        const std::uint64_t rest = size_of(info) - position_.offset;
        const std::string bytes = read_at(fd, position_.offset, std::min<std::uint64_t>(rest, largest_old_copy));
        for (const auto line : split(bytes, true).lines) { add(lines, line); }
        if (rest > bytes.size()) { add_gap(lines, step, rest - bytes.size(), std::string{reason}); }
    }
    else { add_gap(lines, step, 0, std::string{reason}); }
    if (fd >= 0) { close(fd); }
}

/// False: there is no file.
Result<bool> Tailer::open_file(std::vector<Line>& lines, Step& step)
{
    const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT) { return false; }
    if (fd < 0) { return errno_error("open " + path_, errno); }
    struct stat info{};
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode))
    {
        close(fd);
        return Error{Errc::failed_precondition, "open " + path_ + ": not a regular file", {}, {}};
    }
    fd_ = fd;
    const bool known = position_.inode != 0;
    const bool same = known && position_.device == info.st_dev && position_.inode == info.st_ino;
    if (same && size_of(info) >= position_.offset && same_head(fd, position_)) { return true; }
    // Something happened while nobody watched.
    if (known) { take_old_copy(lines, step, same ? "truncated" : "rotated away"); }
    start_over(info.st_dev, info.st_ino);
    return true;
}

Result<Done> Tailer::keep(std::vector<Line> lines, Step& step)
{
    const std::size_t count = lines.size();
    auto kept = store_.append(std::move(lines), position_);
    if (!kept)
    {
        position_ = store_.position();
        close_file(); // what was decided in this step is decided again
        return kept;
    }
    step.lines += count;
    step.next = store_.next();
    return Done{};
}

Result<Step> Tailer::step(std::uint64_t now_ms)
{
    now_ms_ = now_ms;
    Step step;
    step.next = store_.next();
    std::vector<Line> lines;
    if (fd_ < 0)
    {
        auto opened = open_file(lines, step);
        if (!opened) { return std::move(opened).error(); }
        if (!*opened)
        {
            step.gone = true;
            return step;
        }
    }
    struct stat info{};
    if (fstat(fd_, &info) != 0) { return errno_error("stat " + path_, errno); }
    if (size_of(info) < position_.offset || !same_head(fd_, position_))
    {
        take_old_copy(lines, step, "truncated");
        start_over(info.st_dev, info.st_ino);
    }
    std::uint64_t behind = size_of(info) - position_.offset;
    if (behind > limits_.flood_bytes)
    {
        const std::uint64_t skip = behind - limits_.flood_bytes / 2;
        add_gap(lines, step, skip, "flood");
        position_.offset += skip;
        behind -= skip;
        // On to the next whole line.
        const auto newline = read_at(fd_, position_.offset, max_line_bytes).find('\n');
        if (newline != std::string::npos)
        {
            position_.offset += newline + 1;
            behind -= newline + 1;
        }
    }
    const std::string bytes = read_at(fd_, position_.offset, std::min<std::uint64_t>(behind, limits_.step_bytes));
    const bool at_end = bytes.size() == behind;
    struct stat named{};
    const bool exists = stat(path_.c_str(), &named) == 0;
    const bool replaced = at_end && exists && (named.st_ino != info.st_ino || named.st_dev != info.st_dev);
    const bool removed = at_end && !exists;
    // Nobody will finish the last line of a file that has lost its name.
    const Split found = split(bytes, replaced || removed);
    lines.reserve(lines.size() + found.lines.size());
    for (const auto line : found.lines) { add(lines, line); }
    position_.offset += found.consumed;
    learn_head();
    step.more = !at_end || replaced;
    step.gone = removed;
    auto kept = keep(std::move(lines), step);
    if (!kept) { return std::move(kept).error(); }
    if (replaced)
    {
        close_file();
        start_over(named.st_dev, named.st_ino);
        auto noted = keep({}, step); // so that the next file's beginning is no loss
        if (!noted) { return std::move(noted).error(); }
    }
    return step;
}

} // namespace dstack::logs
