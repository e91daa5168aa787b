#include "shared/compose/image_reference.hpp"
#include <algorithm>

namespace dstack::compose
{

namespace
{

bool lower_or_digit(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); }
bool word(char c) { return lower_or_digit(c) || (c >= 'A' && c <= 'Z') || c == '_'; }

bool valid_path(std::string_view path)
{
    while (true)
    {
        const std::size_t slash = path.find('/');
        const std::string_view part = path.substr(0, slash);
        if (part.empty() || !lower_or_digit(part.front()) || !lower_or_digit(part.back())) { return false; }
        if (!std::ranges::all_of(part, [](char c) { return lower_or_digit(c) || c == '.' || c == '_' || c == '-'; }))
        {
            return false;
        }
        if (slash == std::string_view::npos) { return true; }
        path.remove_prefix(slash + 1);
    }
}

bool valid_host(std::string_view host)
{
    const std::size_t colon = host.find(':');
    if (colon != std::string_view::npos)
    {
        const std::string_view port = host.substr(colon + 1);
        if (port.empty() || port.size() > 5 || !std::ranges::all_of(port, [](char c) { return c >= '0' && c <= '9'; }))
        {
            return false;
        }
        host = host.substr(0, colon);
    }
    return !host.empty() && word(host.front()) &&
           std::ranges::all_of(host, [](char c) { return word(c) || c == '.' || c == '-'; });
}

bool valid_tag(std::string_view tag)
{
    return !tag.empty() && tag.size() <= 128 && word(tag.front()) &&
           std::ranges::all_of(tag, [](char c) { return word(c) || c == '.' || c == '-'; });
}

bool valid_digest(std::string_view digest)
{
    constexpr std::string_view prefix = "sha256:";
    return digest.size() == prefix.size() + 64 && digest.starts_with(prefix) &&
           std::ranges::all_of(digest.substr(prefix.size()),
                               [](char c) { return (c >= 'a' && c <= 'f') || (c >= '0' && c <= '9'); });
}

} // namespace

Result<std::string> normalize_image(std::string_view reference)
{
    const Error refused{Errc::invalid_argument,
                        "the image name '" + std::string{reference.substr(0, 200)} + "' is not valid",
                        "write it as busybox, nginx:1.25 or registry.example/team/app@sha256:<64 hex>",
                        {}};
    if (reference.empty() || reference.size() > 512) { return refused; }
    const std::size_t at = reference.find('@');
    std::string_view name = reference.substr(0, at);
    const std::string_view digest = at == std::string_view::npos ? std::string_view{} : reference.substr(at + 1);
    if (at != std::string_view::npos && !valid_digest(digest)) { return refused; }

    const std::size_t colon = name.rfind(':');
    std::string_view tag;
    bool tagged = false;
    if (colon != std::string_view::npos && name.find('/', colon) == std::string_view::npos)
    {
        tag = name.substr(colon + 1);
        tagged = true;
        name = name.substr(0, colon);
        if (!valid_tag(tag)) { return refused; }
    }
    std::string_view host = "docker.io";
    std::string path{name};
    const std::size_t slash = name.find('/');
    if (slash == std::string_view::npos) { path = "library/" + path; }
    else if (const std::string_view first = name.substr(0, slash);
             first.find_first_of(".:") != std::string_view::npos || first == "localhost")
    {
        host = first;
        path = name.substr(slash + 1);
    }
    if (!valid_host(host) || !valid_path(path)) { return refused; }
    std::string out = std::string{host} + "/" + path;
    if (tagged) { out += ":" + std::string{tag}; }
    else if (digest.empty()) { out += ":latest"; }
    if (!digest.empty()) { out += "@" + std::string{digest}; }
    return out;
}

} // namespace dstack::compose
