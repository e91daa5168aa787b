#pragma once
#include <string>

namespace dstack
{

/// A new UUID version 7 (RFC 9562, section 5.7): unix milliseconds, 12 bits of the millisecond's fraction, randomness. Ids that
/// one host makes one after the other sort in that order, which keeps an index of them cheap.
std::string uuid_v7();

} // namespace dstack
