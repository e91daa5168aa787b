#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::logs
{

constexpr std::size_t max_line_bytes = 16 * 1024;

/// Where in which file collecting goes on. A file is known by device, inode and its first bytes, because inodes are used
/// again and files are truncated in place.
struct Position
{
    std::uint64_t device = 0;
    std::uint64_t inode = 0; ///< 0: nothing has been read yet
    std::uint64_t offset = 0;
    std::uint64_t head_size = 0; ///< bytes that head_hash covers, at most `max_head_bytes`
    std::uint64_t head_hash = 0;
    friend bool operator==(const Position&, const Position&) = default;
};
constexpr std::uint64_t max_head_bytes = 64;
/// FNV-1a.
std::uint64_t head_hash(std::string_view bytes);

enum class Channel
{
    serial,
    service,
    gap, ///< not a line: says that some are missing
};
std::string_view to_string(Channel channel);

struct Line
{
    std::uint64_t sequence = 0;
    std::uint64_t time_ms = 0; ///< when it was collected, unix time
    Channel channel = Channel::serial;
    std::string text; ///< bytes as the guest wrote them, without the newline; control bytes stay
};

/// What `split` took from a piece of a file.
struct Split
{
    std::vector<std::string_view> lines;
    std::size_t consumed = 0;
};
/// Whole lines ("\r\n" and "\n"); one longer than max_line_bytes is cut into pieces. With `all`, the rest without a
/// newline is a line too.
Split split(std::string_view bytes, bool all);

// A segment is text. A line is "SEQUENCE\tUNIX_MS\tCHANNEL\tTEXT\n"; after each batch of lines stands
// "@\tDEVICE\tINODE\tOFFSET\tHEAD_SIZE\tHEAD_HASH\n": up to where in the source's file the lines before it come from.
// Lines without such an end were cut off by a crash: they are dropped on opening, and collected again.

void encode(std::string& out, const Line& line);
void encode(std::string& out, const Position& position);
std::optional<Line> decode_line(std::string_view record);
std::optional<Position> decode_position(std::string_view record);

struct Recovered
{
    std::size_t valid_bytes = 0; ///< up to the end of the last whole batch
    std::uint64_t last_sequence = 0; ///< 0: no line
    std::optional<Position> position;
};
Recovered recover(std::string_view segment);

/// "00000000000000000042.log" is the segment whose first line is 42.
std::string segment_name(std::uint64_t first_sequence);
std::optional<std::uint64_t> segment_first(std::string_view file_name);

/// A name that is one path component and harmless: 1 to 64 of [A-Za-z0-9._-], not beginning with a dot.
bool is_source_name(std::string_view name);
/// Inside `root`, absolute, without "." and "..".
bool is_inside(std::string_view root, std::string_view path);

/// "2026-11-21T09:35:33.123Z"
std::string rfc3339(std::uint64_t unix_ms);
/// Bytes that are not UTF-8 become U+FFFD; control bytes stay.
std::string valid_utf8(std::string_view bytes);
/// Of `text` in JSON, without the quotes; never less than it takes.
std::size_t json_size(std::string_view text);

/// The text of a gap's line: "lost lines 4 to 9: quota" or "lost 512 bytes: truncated".
std::string gap_text(std::uint64_t from, std::uint64_t to, std::uint64_t bytes, std::string_view reason);

} // namespace dstack::logs
