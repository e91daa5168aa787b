#include "services/dstackup/notify.hpp"
#include <algorithm>

namespace dstack::up
{

Notice parse_notice(std::string_view datagram)
{
    constexpr std::size_t max_status = 200;
    Notice out;
    while (!datagram.empty())
    {
        const auto end = std::min(datagram.find('\n'), datagram.size());
        const auto line = datagram.substr(0, end);
        datagram.remove_prefix(std::min(end + 1, datagram.size()));
        if (line == "READY=1") { out.ready = true; }
        else if (line == "STOPPING=1") { out.stopping = true; }
        else if (line.starts_with("STATUS=")) { out.status = line.substr(7, max_status); }
    }
    return out;
}

} // namespace dstack::up
