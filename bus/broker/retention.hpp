#pragma once
#include <cstdint>

namespace dstack::bus
{

/// What the journal keeps; 0 is no limit. The oldest events go first.
struct Retention
{
    std::uint64_t max_events = 1'000'000;
    std::uint64_t max_age_ms = 0;
    std::uint64_t max_bytes = 0; ///< of pages in use; freed pages are used again, the file does not shrink
};

} // namespace dstack::bus
