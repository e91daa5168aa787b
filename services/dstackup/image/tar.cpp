#include "services/dstackup/image/tar.hpp"
#include <algorithm>
#include <array>
#include <charconv>

namespace dstack::image
{

namespace
{
constexpr std::size_t block = 512;
constexpr std::uint64_t max_metadata = 1024 * 1024;
constexpr std::uint64_t max_member = std::uint64_t{1} << 40;
using Header = std::array<char, block>;

Error broken(std::string what) { return Error{Errc::data_loss, "tar archive: " + std::move(what), {}, {}}; }

std::string_view text_field(const Header& h, std::size_t at, std::size_t size)
{
    const std::string_view field{h.data() + at, size};
    return field.substr(0, field.find('\0'));
}

/// Octal digits with blanks or zero bytes around, or GNU's base-256 with the top bit set.
std::optional<std::uint64_t> number_field(const Header& h, std::size_t at, std::size_t size)
{
    const auto first = static_cast<unsigned char>(h[at]);
    std::uint64_t value = 0;
    if ((first & 0x80U) != 0)
    {
        if ((first & 0x7fU) != 0) { return std::nullopt; } // negative, or too large for anything here
        for (std::size_t i = 1; i < size; ++i)
        {
            if (value >> 56 != 0) { return std::nullopt; }
            value = value << 8 | static_cast<unsigned char>(h[at + i]);
        }
        return value;
    }
    std::string_view digits{h.data() + at, size};
    while (digits.starts_with(' ')) { digits.remove_prefix(1); }
    const auto end = digits.find_first_of(std::string_view{" \0", 2});
    digits = digits.substr(0, end);
    if (digits.empty()) { return value; }
    const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, 8);
    if (error != std::errc{} || stop != digits.data() + digits.size()) { return std::nullopt; }
    return value;
}

bool checksum_holds(const Header& h)
{
    const auto stored = number_field(h, 148, 8);
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < block; ++i) { sum += i >= 148 && i < 156 ? ' ' : static_cast<unsigned char>(h[i]); }
    return stored == sum;
}

Entry::Kind kind_of(char type)
{
    switch (type)
    {
    case '0':
    case '\0':
    case '7':
        return Entry::Kind::file;
    case '1':
        return Entry::Kind::hardlink;
    case '2':
        return Entry::Kind::symlink;
    case '5':
        return Entry::Kind::directory;
    case '6':
        return Entry::Kind::fifo;
    default:
        return Entry::Kind::other;
    }
}

/// What pax headers and GNU long names say about the member that follows.
struct Override
{
    std::optional<std::string> name{};
    std::optional<std::string> target{};
    std::optional<std::uint64_t> size{};
    std::optional<std::uint64_t> uid{};
    std::optional<std::uint64_t> gid{};
    std::optional<std::int64_t> mtime{};
};

template <class T>
std::optional<T> decimal(std::string_view text)
{
    T value{};
    text = text.substr(0, text.find('.')); // fractions of a second are not kept
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || stop != text.data() + text.size()) { return std::nullopt; }
    return value;
}

/// Records "<length> key=value\n".
Result<Done> read_pax(std::string_view text, Override& out)
{
    while (!text.empty())
    {
        const auto blank = text.find(' ');
        const auto length =
            blank == std::string_view::npos ? std::nullopt : decimal<std::size_t>(text.substr(0, blank));
        if (!length || *length < blank + 3 || *length > text.size() || text[*length - 1] != '\n')
        {
            return broken("a pax header is damaged");
        }
        const auto record = text.substr(blank + 1, *length - blank - 2);
        text.remove_prefix(*length);
        const auto equal = record.find('=');
        if (equal == std::string_view::npos) { return broken("a pax header is damaged"); }
        const auto key = record.substr(0, equal);
        const auto value = record.substr(equal + 1);
        if (key == "path") { out.name = std::string{value}; }
        else if (key == "linkpath") { out.target = std::string{value}; }
        else if (key == "size") { out.size = decimal<std::uint64_t>(value); }
        else if (key == "uid") { out.uid = decimal<std::uint64_t>(value); }
        else if (key == "gid") { out.gid = decimal<std::uint64_t>(value); }
        else if (key == "mtime") { out.mtime = decimal<std::int64_t>(value); }
    }
    return Done{};
}

Result<Entry> entry_of(const Header& h, Override& said)
{
    const auto size = number_field(h, 124, 12);
    const auto mode = number_field(h, 100, 8);
    const auto uid = number_field(h, 108, 8);
    const auto gid = number_field(h, 116, 8);
    const auto mtime = number_field(h, 136, 12);
    if (!size || !mode || !uid || !gid) { return broken("a number in a header is damaged"); }
    Entry out;
    out.kind = kind_of(h[156]);
    if (said.name) { out.name = std::move(*said.name); }
    else
    {
        const auto prefix = std::string_view{h.data() + 257, 6} == std::string_view{"ustar\0", 6}
                                ? text_field(h, 345, 155)
                                : std::string_view{};
        out.name = prefix.empty() ? std::string{} : std::string{prefix} + "/";
        out.name += text_field(h, 0, 100);
    }
    out.target = said.target ? std::move(*said.target) : std::string{text_field(h, 157, 100)};
    out.mode = static_cast<std::uint32_t>(*mode & 07777U);
    out.uid = static_cast<std::uint32_t>(said.uid.value_or(*uid));
    out.gid = static_cast<std::uint32_t>(said.gid.value_or(*gid));
    out.mtime = said.mtime.value_or(static_cast<std::int64_t>(mtime.value_or(0)));
    out.size = said.size.value_or(*size);
    if (out.size > max_member) { return broken(out.name + " claims a size that cannot be"); }
    if (out.kind != Entry::Kind::file && out.kind != Entry::Kind::other)
    {
        out.size = 0;
    } // links may carry a size without data
    if (out.kind == Entry::Kind::file && out.name.ends_with('/')) { out.kind = Entry::Kind::directory; }
    return out;
}
} // namespace

Result<Done> TarReader::skip(std::uint64_t bytes)
{
    std::array<char, 16 * 1024> sink{};
    while (bytes > 0)
    {
        auto got = source_.read(
            std::span<char>{sink}.first(static_cast<std::size_t>(std::min<std::uint64_t>(bytes, sink.size()))));
        if (!got) { return std::move(got).error(); }
        if (*got == 0) { return broken("it ends in the middle of a member"); }
        bytes -= *got;
    }
    return Done{};
}

Result<std::string> TarReader::metadata(std::uint64_t size)
{
    if (size > max_metadata) { return broken("a header is larger than 1 MiB"); }
    std::string out(static_cast<std::size_t>(size), '\0');
    auto got = read_full(source_, out);
    if (!got) { return std::move(got).error(); }
    if (*got != out.size()) { return broken("it ends in the middle of a header"); }
    auto skipped = skip((block - size % block) % block);
    if (!skipped) { return std::move(skipped).error(); }
    return out;
}

Result<std::optional<Entry>> TarReader::next()
{
    auto skipped = skip(left_ + padding_);
    if (!skipped) { return std::move(skipped).error(); }
    left_ = padding_ = 0;
    Override said;
    while (true)
    {
        Header header{};
        auto got = read_full(source_, header);
        if (!got) { return std::move(got).error(); }
        if (*got == 0) { return std::optional<Entry>{}; } // some writers leave the closing zero blocks out
        if (*got != block) { return broken("it ends in the middle of a header"); }
        if (std::all_of(header.begin(), header.end(), [](char c) { return c == '\0'; }))
        {
            return std::optional<Entry>{};
        }
        if (!checksum_holds(header)) { return broken("a header's checksum is wrong: damaged, or not a tar archive"); }
        const char type = header[156];
        if (type == 'x' || type == 'g' || type == 'L' || type == 'K')
        {
            const auto size = number_field(header, 124, 12);
            if (!size) { return broken("a number in a header is damaged"); }
            auto text = metadata(*size);
            if (!text) { return std::move(text).error(); }
            if (type == 'L') { said.name = text->substr(0, text->find('\0')); }
            else if (type == 'K') { said.target = text->substr(0, text->find('\0')); }
            else if (type == 'x')
            {
                auto read = read_pax(*text, said);
                if (!read) { return std::move(read).error(); }
            }
            continue;
        }
        auto entry = entry_of(header, said);
        if (!entry) { return std::move(entry).error(); }
        left_ = entry->size;
        padding_ = (block - entry->size % block) % block;
        return std::optional<Entry>{std::move(*entry)};
    }
}

Result<std::size_t> TarReader::read(std::span<char> out)
{
    if (left_ == 0) { return std::size_t{0}; }
    auto got = source_.read(out.first(static_cast<std::size_t>(std::min<std::uint64_t>(left_, out.size()))));
    if (!got) { return got; }
    if (*got == 0) { return broken("it ends in the middle of a member"); }
    left_ -= *got;
    return got;
}

Result<std::vector<std::string>> safe_parts(std::string_view name)
{
    if (name.find('\0') != std::string_view::npos || name.size() > 4096)
    {
        return Error{Errc::invalid_argument, "a file name in the archive is no name", {}, {}};
    }
    std::vector<std::string> out;
    while (!name.empty())
    {
        const auto end = std::min(name.find('/'), name.size());
        const auto part = name.substr(0, end);
        name.remove_prefix(std::min(end + 1, name.size()));
        if (part.empty() || part == ".") { continue; }
        if (part == "..")
        {
            return Error{Errc::invalid_argument, "a file name in the archive leads out of it with ..", {}, {}};
        }
        if (part.size() > 255)
        {
            return Error{Errc::invalid_argument, "a file name in the archive is longer than 255 bytes", {}, {}};
        }
        out.emplace_back(part);
    }
    return out;
}

} // namespace dstack::image
