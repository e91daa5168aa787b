#pragma once
#include <string>
#include <string_view>

namespace dstack::up
{

/// What one datagram of the sd_notify protocol says (sd_notify(3)); unknown lines are ignored.
struct Notice
{
    bool ready = false;
    bool stopping = false;
    std::string status{}; ///< STATUS=, at most 200 bytes; empty when the datagram has none
};
Notice parse_notice(std::string_view datagram);

} // namespace dstack::up
