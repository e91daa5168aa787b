// Hostile bytes to the decoder of frames: every field is a part of the frame, in order, and what is complete can be put together
// again to the same bytes.
#include "bus/protocol/frames.hpp"
#include <cstdint>
#include <cstdlib>

using namespace dstack::bus;

namespace
{
void check(bool holds)
{
    if (!holds) { std::abort(); }
}
} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size)
{
    const std::string_view frame{reinterpret_cast<const char*>(data), size};
    const wire::Line line{frame};
    check(wire::is_field(line.version()) && wire::is_field(line.verb()));
    std::string again{line.version()};
    const char* behind = frame.data();
    for (std::size_t i = 0; i < 9; ++i)
    {
        const std::string_view field = line.at(i);
        if (field.data() == nullptr) { break; }
        check(field.data() >= behind && field.data() + field.size() <= frame.data() + frame.size());
        behind = field.data() + field.size();
        again.append(1, '\n').append(field);
    }
    check(frame.starts_with(again) || again == std::string{frame} + '\n'); // a version alone has no verb behind it
    if (line.complete()) { check(again == frame); }
    if (line.verb() == wire::published)
    {
        std::size_t pairs = 0;
        for (std::string_view rest = line.at(1); !rest.empty(); ++pairs)
        {
            const std::size_t before = rest.size();
            wire::next_field(rest);
            wire::next_field(rest);
            check(rest.size() < before);
        }
        check(pairs <= size);
    }
    return 0;
}
