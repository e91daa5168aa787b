#pragma once
#include "shared/base/result.hpp"
#include <cstdint>
#include <string>
#include <string_view>

namespace dstack::bus
{

/// Where a broker listens on tcp: commands on `port`, events on the next one.
struct Endpoint
{
    static constexpr std::uint16_t default_port = 9700;
    std::string host; ///< a name or an IPv4 or IPv6 address, without brackets
    std::uint16_t port = default_port;

    std::string text() const; ///< "host:port", "[::1]:port"
    std::string commands() const { return "tcp://" + text(); }
    std::string events() const;
    bool ipv6() const { return host.find(':') != std::string::npos; }
};

/// "HOST", "HOST:PORT", "[ADDRESS]" or "[ADDRESS]:PORT"; the port is 1 to 65534.
Result<Endpoint> parse_endpoint(std::string_view text);

} // namespace dstack::bus
