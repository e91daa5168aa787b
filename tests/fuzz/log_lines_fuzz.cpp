// A guest's bytes and a damaged segment: nothing is lost between two splits, and what recovery keeps it can read again.
#include "services/logs/lines.hpp"
#include <cstdint>
#include <cstdlib>

using namespace dstack::logs;

namespace
{
void check(bool holds)
{
    if (!holds) { std::abort(); }
}
} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size)
{
    const std::string_view bytes{reinterpret_cast<const char*>(data), size};
    const Split some = split(bytes, false);
    check(some.consumed <= size);
    const Split rest = split(bytes.substr(some.consumed), true);
    check(some.consumed + rest.consumed == size);
    std::string segment;
    std::uint64_t sequence = 1;
    for (const auto line : some.lines)
    {
        check(line.size() <= max_line_bytes && line.find('\n') == std::string_view::npos);
        encode(segment, Line{sequence++, 1, Channel::serial, std::string{line}});
    }
    encode(segment, Position{1, 2, some.consumed, 0, 0});
    const Recovered own = recover(segment + std::string{bytes.substr(0, 100)});
    check(own.position && own.valid_bytes >= segment.size());
    const Recovered found = recover(bytes);
    check(found.valid_bytes <= size);
    const Recovered again = recover(bytes.substr(0, found.valid_bytes));
    check(again.valid_bytes == found.valid_bytes && again.last_sequence == found.last_sequence);
    const std::string text = valid_utf8(bytes);
    check(valid_utf8(text) == text);
    static_cast<void>(is_inside("/vms", bytes));
    return 0;
}
