#include "shared/base/uuid.hpp"
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <sys/random.h>

namespace dstack
{

std::string uuid_v7()
{
    using namespace std::chrono;
    const auto now = static_cast<std::uint64_t>(duration_cast<nanoseconds>(system_clock::now().time_since_epoch()).count());
    const std::uint64_t ms = now / 1'000'000;
    const std::uint64_t fraction = now % 1'000'000 * 4096 / 1'000'000;
    std::array<unsigned char, 16> bytes{};
    if (::getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) { std::abort(); }
    for (std::size_t i = 0; i < 6; ++i) { bytes[i] = static_cast<unsigned char>(ms >> (40 - 8 * i)); }
    bytes[6] = static_cast<unsigned char>(0x70U | fraction >> 8);
    bytes[7] = static_cast<unsigned char>(fraction);
    bytes[8] = static_cast<unsigned char>(0x80U | (bytes[8] & 0x3fU));

    static constexpr std::string_view digits = "0123456789abcdef";
    std::string text;
    for (std::size_t i = 0; i < bytes.size(); ++i)
    {
        if (i == 4 || i == 6 || i == 8 || i == 10) { text += '-'; }
        (text += digits[bytes[i] >> 4]) += digits[bytes[i] & 15];
    }
    return text;
}

} // namespace dstack
