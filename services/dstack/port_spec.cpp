#include "services/dstack/port_spec.hpp"
#include <arpa/inet.h>
#include <array>
#include <charconv>
#include <optional>
#include <vector>

namespace dstack::cli
{

namespace
{
Error bad(std::string_view text, std::string_view why)
{
    return Error{Errc::invalid_argument, "invalid --port '" + std::string{text} + "': " + std::string{why},
                 "expected vm | host:vm | proto:host:vm | proto:addr:host:vm, host may be auto, both may be ranges such as 8000-8010", {}};
}

/// At colons, but not at those inside brackets; nothing when the brackets do not match or are not a whole part.
std::optional<std::vector<std::string_view>> split(std::string_view text)
{
    std::vector<std::string_view> parts;
    std::size_t begin = 0;
    while (true)
    {
        std::size_t end = begin;
        if (begin < text.size() && text[begin] == '[')
        {
            end = text.find(']', begin);
            if (end == std::string_view::npos) { return std::nullopt; }
            ++end;
            if (end < text.size() && text[end] != ':') { return std::nullopt; }
        }
        else { end = std::min(text.find(':', begin), text.size()); }
        parts.push_back(text.substr(begin, end - begin));
        if (end == text.size()) { return parts; }
        begin = end + 1;
    }
}

std::optional<std::uint32_t> port_number(std::string_view text)
{
    std::uint32_t value = 0;
    const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || rest != text.data() + text.size() || value > 65535) { return std::nullopt; }
    return value;
}

/// Without brackets; nothing when it is no IP address in its right form.
std::optional<std::string> address(std::string_view text)
{
    const bool bracketed = text.size() > 2 && text.front() == '[' && text.back() == ']';
    const std::string bare{bracketed ? text.substr(1, text.size() - 2) : text};
    std::array<unsigned char, 16> bytes{};
    const int family = bracketed ? AF_INET6 : AF_INET;
    if (::inet_pton(family, bare.c_str(), bytes.data()) != 1) { return std::nullopt; }
    return bare;
}
} // namespace

Result<schema::PortMapping> parse_port_spec(std::string_view text)
{
    const auto parts = split(text);
    if (!parts) { return bad(text, "the brackets do not enclose one address"); }
    if (parts->size() > 4) { return bad(text, "too many colons"); }
    schema::PortMapping out;
    const auto at = [&](std::size_t from_end) { return (*parts)[parts->size() - from_end]; };
    const auto vm = port_number(at(1));
    if (!vm || *vm == 0) { return bad(text, "the guest's port is not 1 to 65535"); }
    out.vm_port = *vm;
    if (parts->size() >= 2 && !at(2).empty() && at(2) != "auto")
    {
        const auto host = port_number(at(2));
        if (!host) { return bad(text, "the host's port is not 0 to 65535 or auto"); }
        out.host_port = *host;
    }
    if (parts->size() >= 3)
    {
        const std::string_view protocol = parts->front();
        if (protocol != "tcp" && protocol != "udp") { return bad(text, "the protocol is not tcp or udp"); }
        out.protocol = protocol;
    }
    if (parts->size() == 4)
    {
        const auto host = address((*parts)[1]);
        if (!host) { return bad(text, "the address is not an IP address (IPv6 in brackets)"); }
        out.host_address = *host;
    }
    return out;
}

namespace
{
constexpr std::uint32_t max_range = 256;

struct Range
{
    std::uint32_t first = 0;
    std::uint32_t last = 0;
};

/// "8000-8010"; nothing when it is none.
std::optional<Range> range_of(std::string_view text)
{
    const auto dash = text.find('-');
    if (dash == std::string_view::npos || dash == 0) { return std::nullopt; }
    const auto first = port_number(text.substr(0, dash));
    const auto last = port_number(text.substr(dash + 1));
    if (!first || !last) { return std::nullopt; }
    return Range{*first, *last};
}
} // namespace

Result<std::vector<schema::PortMapping>> parse_port_specs(std::string_view text)
{
    const auto parts = split(text);
    const auto vm = parts ? range_of(parts->back()) : std::nullopt;
    const auto host = parts && parts->size() > 1 ? range_of((*parts)[parts->size() - 2]) : std::nullopt;
    if (!vm && !host)
    {
        auto one = parse_port_spec(text);
        if (!one) { return std::move(one).error(); }
        return std::vector{std::move(*one)};
    }
    if (!vm) { return bad(text, "the host's ports are a range, the guest's are not"); }
    if (vm->first == 0 || vm->last < vm->first) { return bad(text, "the guest's range does not go up from 1 or more"); }
    if (vm->last - vm->first >= max_range) { return bad(text, "a range has at most 256 ports"); }
    if (host && (host->first == 0 || host->last < host->first)) { return bad(text, "the host's range does not go up from 1 or more"); }
    if (host && host->last - host->first != vm->last - vm->first) { return bad(text, "the two ranges differ in length"); }
    // One port of it stands for all: the rest of the spec is checked with it.
    std::string single;
    for (std::size_t i = 0; i + 1 < parts->size(); ++i)
    {
        const bool is_host = i + 2 == parts->size();
        single += (is_host && host ? std::string{"1"} : std::string{(*parts)[i]}) + ":";
    }
    single += "1";
    auto pattern = parse_port_spec(single);
    if (!pattern) { return bad(text, pattern.error().message.substr(pattern.error().message.rfind(": ") + 2)); }
    if (!host && pattern->host_port != 0) { return bad(text, "the guest's ports are a range, the host's are not (`auto` is fine)"); }
    std::vector<schema::PortMapping> out;
    for (std::uint32_t i = 0; i <= vm->last - vm->first; ++i)
    {
        pattern->host_port = host ? host->first + i : 0;
        pattern->vm_port = vm->first + i;
        out.push_back(*pattern);
    }
    return out;
}

} // namespace dstack::cli
