#include "bus/protocol/endpoint.hpp"
#include <algorithm>
#include <charconv>

namespace dstack::bus
{

namespace
{
bool is_host(std::string_view host, bool bracketed)
{
    // What a ZeroMQ endpoint would take as something else: wildcards, interfaces, a source address.
    return !host.empty() && host.size() <= 253 &&
           std::all_of(host.begin(), host.end(),
                       [bracketed](char c)
                       {
                           const bool word = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '-' || c == '_';
                           return word || (bracketed && (c == ':' || c == '%'));
                       });
}
} // namespace

std::string Endpoint::text() const { return (ipv6() ? '[' + host + ']' : host) + ':' + std::to_string(port); }

std::string Endpoint::events() const { return Endpoint{host, static_cast<std::uint16_t>(port + 1)}.commands(); }

Result<Endpoint> parse_endpoint(std::string_view text)
{
    const auto bad = [text] { return Error{Errc::invalid_argument, "'" + std::string{text.substr(0, 300)} + "' is no HOST:PORT", "such as 192.0.2.7:9700 or [2001:db8::7]:9700", {}}; };
    std::string_view host = text;
    std::string_view port;
    const bool bracketed = text.starts_with('[');
    if (bracketed)
    {
        const auto end = text.find(']');
        if (end == std::string_view::npos) { return bad(); }
        host = text.substr(1, end - 1);
        port = text.substr(end + 1);
    }
    else if (const auto colon = text.find(':'); colon != std::string_view::npos)
    {
        host = text.substr(0, colon);
        port = text.substr(colon);
    }
    Endpoint out{std::string{host}, Endpoint::default_port};
    if (!is_host(host, bracketed) || bracketed != out.ipv6()) { return bad(); }
    if (port.empty()) { return out; }
    unsigned number = 0;
    const auto [end, error] = std::from_chars(port.data() + 1, port.data() + port.size(), number);
    if (port[0] != ':' || error != std::errc{} || end != port.data() + port.size() || number == 0 || number > 65534) { return bad(); }
    out.port = static_cast<std::uint16_t>(number);
    return out;
}

} // namespace dstack::bus
