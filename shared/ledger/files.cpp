#include "shared/ledger/files.hpp"
#include "shared/ledger/chain.hpp"
#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <dirent.h>
#include <fcntl.h>
#include <memory>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

namespace dstack::ledger
{

namespace
{

constexpr std::string_view sealed_prefix = "decisions-";
constexpr std::string_view suffix = ".ndjson";
constexpr std::size_t block = 64 * 1024; // what one read takes: it stays in the allocator of each thread that reads

std::uint64_t sealed_number(std::string_view name)
{
    if (!name.starts_with(sealed_prefix) || !name.ends_with(suffix)) { return 0; }
    name.remove_prefix(sealed_prefix.size());
    name.remove_suffix(suffix.size());
    std::uint64_t out = 0;
    const auto [end, failed] = std::from_chars(name.data(), name.data() + name.size(), out);
    return failed == std::errc{} && end == name.data() + name.size() ? out : 0;
}

/// Appends up to `count` bytes of the file; fewer only at its end.
Result<Done> read_at(int fd, std::uint64_t offset, std::size_t count, std::string& out)
{
    const std::size_t before = out.size();
    out.resize(before + count);
    std::size_t got = 0;
    while (got < count)
    {
        const ssize_t n = ::pread(fd, out.data() + before + got, count - got, static_cast<off_t>(offset + got));
        if (n < 0 && errno == EINTR) { continue; }
        if (n < 0)
        {
            const Error error = errno_error("read", errno);
            out.resize(before);
            return error;
        }
        if (n == 0) { break; }
        got += static_cast<std::size_t>(n);
    }
    out.resize(before + got);
    return Done{};
}

} // namespace

std::string sealed_name(std::uint64_t first)
{
    std::array<char, 64> text{};
    const int size = std::snprintf(text.data(), text.size(), "decisions-%012llu.ndjson", static_cast<unsigned long long>(first));
    return {text.data(), static_cast<std::size_t>(size)};
}

Result<std::vector<Segment>> list_segments(const std::string& directory)
{
    const std::unique_ptr<DIR, int (*)(DIR*)> dir{::opendir(directory.c_str()), ::closedir};
    if (!dir) { return errno_error("open " + directory, errno); }
    std::vector<Segment> out;
    bool active = false;
    for (const dirent* entry = ::readdir(dir.get()); entry != nullptr; entry = ::readdir(dir.get()))
    {
        const std::string_view name = entry->d_name;
        active = active || name == active_name;
        const std::uint64_t first = sealed_number(name);
        if (first != 0) { out.push_back({directory + "/" + std::string{name}, first}); }
    }
    std::sort(out.begin(), out.end(), [](const Segment& a, const Segment& b) { return a.first < b.first; });
    if (active) { out.push_back({directory + "/" + std::string{active_name}, 0}); }
    return out;
}

Result<File> File::open(const std::string& path)
{
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) { return errno_error("open " + path, errno); }
    return File{fd};
}

File::File(File&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

File& File::operator=(File&& other) noexcept
{
    std::swap(fd_, other.fd_);
    return *this;
}

File::~File()
{
    if (fd_ >= 0) { ::close(fd_); }
}

Result<std::uint64_t> File::size() const
{
    struct stat facts = {};
    if (::fstat(fd_, &facts) != 0) { return errno_error("stat", errno); }
    return static_cast<std::uint64_t>(facts.st_size);
}

Result<bool> LineReader::next(std::string_view& line)
{
    for (;;)
    {
        const auto end = buffer_.find('\n', scanned_);
        if (end != std::string::npos)
        {
            line = std::string_view{buffer_}.substr(start_, end - start_);
            start_ = scanned_ = end + 1;
            return true;
        }
        scanned_ = buffer_.size();
        if (buffer_.size() - start_ > max_line)
        {
            return Error{Errc::data_loss, "a line is longer than 1 MiB", {}, {}};
        }
        buffer_.erase(0, start_);
        scanned_ -= start_;
        consumed_ += start_;
        start_ = 0;
        const std::size_t before = buffer_.size();
        auto got = read_at(fd_, offset_ + consumed_ + before, block, buffer_);
        if (!got) { return std::move(got).error(); }
        if (buffer_.size() == before) { return false; }
    }
}

Result<bool> read_backwards(int fd, std::uint64_t end, const std::function<bool(std::string_view)>& take)
{
    std::string buffer;
    std::size_t want = 4 * block; // a line that began before it is read again
    while (end > 0)
    {
        const std::uint64_t from = end > want ? end - want : 0;
        buffer.clear();
        auto got = read_at(fd, from, static_cast<std::size_t>(end - from), buffer);
        if (!got) { return std::move(got).error(); }
        if (buffer.size() != end - from) { return Error{Errc::data_loss, "the file became shorter", {}, {}}; }
        // The first line of the block may have begun before it.
        const auto cut = from == 0 ? std::string::npos : buffer.find('\n');
        const std::size_t whole = from == 0 ? 0 : cut == std::string::npos ? buffer.size() : cut + 1;
        if (whole >= buffer.size())
        {
            want *= 2;
            if (want > 4 * max_line) { return Error{Errc::data_loss, "a line is longer than 1 MiB", {}, {}}; }
            continue;
        }
        std::size_t stop = buffer.size() - 1; // its newline
        for (;;)
        {
            const auto before = stop == 0 ? std::string::npos : buffer.rfind('\n', stop - 1);
            const std::size_t begin = before == std::string::npos || before + 1 < whole ? whole : before + 1;
            if (!take(std::string_view{buffer}.substr(begin, stop - begin))) { return false; }
            if (begin == whole) { break; }
            stop = begin - 1;
        }
        end = from + whole;
        want = 4 * block;
    }
    return true;
}

Result<std::uint64_t> find_record(int fd, std::uint64_t end, std::uint64_t sequence)
{
    const Error missing{Errc::not_found, "record " + std::to_string(sequence) + " is not there", {}, {}};
    std::uint64_t low = 0; // the start of a line that is not behind the wanted one
    std::uint64_t high = end;
    while (high - low > block)
    {
        const std::uint64_t middle = low + (high - low) / 2;
        LineReader reader{fd, middle};
        std::string_view line;
        auto cut = reader.next(line); // where it began is not known
        if (!cut) { return std::move(cut).error(); }
        const std::uint64_t start = reader.position();
        auto got = *cut && start < high ? reader.next(line) : Result<bool>{false};
        if (!got) { return std::move(got).error(); }
        if (!*got)
        {
            high = middle;
            continue;
        }
        auto link = read_link(line);
        if (!link) { return std::move(link).error(); }
        if (link->sequence <= sequence) { low = start; }
        else { high = middle; }
    }
    LineReader reader{fd, low};
    std::string_view line;
    for (;;)
    {
        const std::uint64_t start = reader.position();
        if (start >= end) { return missing; }
        auto got = reader.next(line);
        if (!got) { return std::move(got).error(); }
        if (!*got) { return missing; }
        auto link = read_link(line);
        if (!link) { return std::move(link).error(); }
        if (link->sequence == sequence) { return start; }
        if (link->sequence > sequence) { return missing; }
    }
}

Result<std::string> last_line(int fd, std::uint64_t end)
{
    std::string out;
    auto read = read_backwards(fd, end,
                               [&out](std::string_view line)
                               {
                                   out = line;
                                   return false;
                               });
    if (!read) { return std::move(read).error(); }
    return out;
}

Tail tail_of(std::string_view rest, std::uint64_t position)
{
    const auto last = rest.find_last_not_of('\0');
    return {position, last == std::string_view::npos ? 0 : last + 1};
}

} // namespace dstack::ledger
