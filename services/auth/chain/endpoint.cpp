#include "services/auth/chain/endpoint.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/http/message.hpp"
#include <algorithm>
#include <charconv>

namespace dstack::auth::chain
{

namespace
{

Error refused(std::string why) { return Error{Errc::invalid_argument, std::move(why), {}, {}}; }

bool is_url_text(std::string_view text)
{
    return std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

bool is_host(std::string_view text)
{
    return !text.empty() && text.size() <= 253 &&
           std::all_of(text.begin(), text.end(),
                       [](char c)
                       {
                           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
                                  c == '.' || c == '_' || c == ':';
                       });
}

bool is_this_machine(std::string_view host)
{
    return host == "localhost" || host == "::1" ||
           (host.starts_with("127.") && host.find_first_not_of("0123456789.") == std::string_view::npos);
}

Result<Endpoint> parse_one(std::string_view url, bool plain_http)
{
    Endpoint out;
    if (url.size() > 2048 || !is_url_text(url)) { return refused("not a url of at most 2048 printable characters without blanks"); }
    out.tls = url.starts_with("https://");
    if (!out.tls && !url.starts_with("http://")) { return refused("must begin with https:// (or http://)"); }
    url.remove_prefix(out.tls ? 8 : 7);
    const auto end = url.find_first_of("/?#");
    std::string_view authority = url.substr(0, end);
    if (end != std::string_view::npos) { out.target = url.substr(end, url.find('#') - end); }
    if (!out.target.starts_with('/')) { out.target.insert(0, "/"); }
    if (const auto at = authority.rfind('@'); at != std::string_view::npos)
    {
        const std::string user = http::percent_decode(authority.substr(0, at));
        out.authorization = "Basic " + crypto::to_base64(crypto::view(user));
        authority.remove_prefix(at + 1);
    }
    std::string_view host = authority;
    std::string_view port;
    if (host.starts_with('['))
    {
        const auto bracket = host.find(']');
        if (bracket == std::string_view::npos) { return refused("] is missing"); }
        port = host.substr(bracket + 1);
        host = host.substr(1, bracket - 1);
    }
    else if (const auto colon = host.find(':'); colon != std::string_view::npos)
    {
        port = host.substr(colon);
        host = host.substr(0, colon);
    }
    unsigned number = out.tls ? 443 : 80;
    if (!port.empty())
    {
        const auto parsed = std::from_chars(port.data() + 1, port.data() + port.size(), number);
        const bool whole = port.size() > 1 && port.front() == ':' && parsed.ec == std::errc{} && parsed.ptr == port.data() + port.size();
        if (!whole || number < 1 || number > 65535) { return refused("the port must be a number from 1 to 65535"); }
    }
    if (!is_host(host)) { return refused("has no host name"); }
    out.host = host;
    out.port = static_cast<std::uint16_t>(number);
    out.authority = authority;
    out.label = authority;
    if (!out.tls && !plain_http && !is_this_machine(host))
    {
        return refused("http:// to another host: whoever is on the way could release keys; use https://, or set allow_plain_http");
    }
    return out;
}

} // namespace

Result<std::vector<Endpoint>> parse_endpoints(std::span<const std::string> urls, bool plain_http)
{
    if (urls.empty()) { return refused("no rpc url"); }
    if (urls.size() > max_endpoints) { return refused("more than " + std::to_string(max_endpoints) + " rpc urls"); }
    std::vector<Endpoint> out;
    for (const std::string& url : urls)
    {
        const std::string place = "rpc url " + std::to_string(out.size() + 1);
        auto one = parse_one(url, plain_http);
        if (!one) { return std::move(one).error().within(place); }
        if (std::find(urls.begin(), urls.begin() + static_cast<std::ptrdiff_t>(out.size()), url) !=
            urls.begin() + static_cast<std::ptrdiff_t>(out.size()))
        {
            return refused(place + ": stands there twice; a quorum of one endpoint with itself proves nothing");
        }
        const auto same = std::count_if(out.begin(), out.end(), [&](const Endpoint& other) { return other.authority == one->authority; });
        if (same > 0) { one->label += "#" + std::to_string(same + 1); }
        out.push_back(std::move(*one));
    }
    return out;
}

std::vector<std::string> lines_of(std::string_view text)
{
    std::vector<std::string> out;
    while (!text.empty())
    {
        const auto end = text.find('\n');
        std::string_view line = text.substr(0, end);
        text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
        const auto first = line.find_first_not_of(" \t\r");
        if (first == std::string_view::npos || line[first] == '#') { continue; }
        const auto last = line.find_last_not_of(" \t\r");
        out.emplace_back(line.substr(first, last - first + 1));
    }
    return out;
}

std::string url_at(const Endpoint& endpoint, std::string_view address)
{
    const bool bracketed = address.find(':') != std::string_view::npos;
    std::string out = endpoint.tls ? "https://" : "http://";
    out += bracketed ? "[" : "";
    out += address;
    out += bracketed ? "]:" : ":";
    return out + std::to_string(endpoint.port) + endpoint.target;
}

} // namespace dstack::auth::chain
