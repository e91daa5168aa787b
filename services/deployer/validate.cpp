#include "services/deployer/validate.hpp"
#include "services/deployer/model.hpp"
#include <algorithm>
#include <arpa/inet.h>
#include <array>
#include <cctype>

namespace dstack::deployer
{

namespace
{
Error refused(std::string message, std::string hint = {})
{
    return Error{Errc::invalid_argument, std::move(message), std::move(hint), {}};
}

/// User input in a message: short, and without control bytes.
std::string in_quotes(std::string_view text)
{
    std::string out = "'";
    for (const char c : text.substr(0, 64))
    {
        const auto byte = static_cast<unsigned char>(c);
        out += byte < 0x20 || byte >= 0x7f ? '?' : c;
    }
    return out + (text.size() > 64 ? "...'" : "'");
}

Result<Done> check_name(std::string_view name)
{
    if (name.empty()) { return refused("an app needs a name", "pass -n NAME"); }
    if (name.size() > max_name_bytes)
    {
        return refused("name " + in_quotes(name) + ": " + std::to_string(name.size()) + " bytes; at most 64 are allowed");
    }
    constexpr std::string_view others = "-_. @~!$^()";
    for (const char c : name)
    {
        const auto byte = static_cast<unsigned char>(c);
        if ((byte < 0x80 && std::isalnum(byte) != 0) || others.find(c) != std::string_view::npos) { continue; }
        return refused("name " + in_quotes(name) + ": the VMM refuses the character " + in_quotes(std::string_view{&c, 1}),
                       "use letters, digits and - _ . space @ ~ ! $ ^ ( )");
    }
    if (name.front() == ' ' || name.back() == ' ' || name.front() == '-')
    {
        return refused("name " + in_quotes(name) + ": begins with '-' or begins or ends with a space");
    }
    return Done{};
}

Result<Done> check_image_name(std::string_view image)
{
    const auto fits = [](char c)
    {
        const auto byte = static_cast<unsigned char>(c);
        return (byte < 0x80 && std::isalnum(byte) != 0) || c == '-' || c == '_' || c == '.';
    };
    if (image.size() > 64 || !std::all_of(image.begin(), image.end(), fits) || image.find("..") != std::string_view::npos)
    {
        return refused("image " + in_quotes(image) + ": not an image name",
                       "at most 64 letters, digits and - _ . (see `dstackup image list`)");
    }
    return Done{};
}

bool is_address(const std::string& text)
{
    std::array<unsigned char, 16> bytes{};
    return ::inet_pton(AF_INET, text.c_str(), bytes.data()) == 1 || ::inet_pton(AF_INET6, text.c_str(), bytes.data()) == 1;
}

bool wildcard(const std::string& address) { return address == "0.0.0.0" || address == "::"; }

Result<Done> check_ports(const std::vector<PortMapping>& ports)
{
    if (ports.size() > max_ports)
    {
        return refused(std::to_string(ports.size()) + " ports; at most " + std::to_string(max_ports) + " can be published");
    }
    for (std::size_t i = 0; i < ports.size(); ++i)
    {
        const PortMapping& port = ports[i];
        if (port.protocol != "tcp" && port.protocol != "udp")
        {
            return refused("port protocol " + in_quotes(port.protocol) + ": not tcp or udp");
        }
        if (port.vm_port == 0 || port.vm_port > 65535)
        {
            return refused("guest port " + std::to_string(port.vm_port) + ": not 1 to 65535");
        }
        if (port.host_port > 65535) { return refused("host port " + std::to_string(port.host_port) + ": not 0 to 65535"); }
        if (!is_address(port.host_address))
        {
            return refused("host address " + in_quotes(port.host_address) + ": not an IP address");
        }
        for (std::size_t j = 0; j < i; ++j)
        {
            const PortMapping& other = ports[j];
            const bool overlap = port.host_address == other.host_address || wildcard(port.host_address) || wildcard(other.host_address);
            if (port.host_port != 0 && port.protocol == other.protocol && port.host_port == other.host_port && overlap)
            {
                return refused("host port " + port.protocol + " " + std::to_string(port.host_port) + " is asked for twice");
            }
        }
    }
    return Done{};
}

Result<Done> check_size(std::string_view what, std::uint32_t value, std::uint32_t low, std::uint32_t high)
{
    if (value >= low && value <= high) { return Done{}; }
    return refused(std::string{what} + " " + std::to_string(value) + ": not " + std::to_string(low) + " to " + std::to_string(high));
}
} // namespace

bool is_utf8(std::string_view text)
{
    for (std::size_t i = 0; i < text.size();)
    {
        const auto first = static_cast<unsigned char>(text[i]);
        std::size_t more = 0;
        std::uint32_t point = first;
        if (first >= 0xf0 && first < 0xf5) { more = 3, point = first & 0x07U; }
        else if (first >= 0xe0) { more = 2, point = first & 0x0fU; }
        else if (first >= 0xc2) { more = 1, point = first & 0x1fU; }
        else if (first >= 0x80) { return false; }
        if (first >= 0xf5 || i + more >= text.size()) { return false; }
        for (std::size_t k = 1; k <= more; ++k)
        {
            const auto next = static_cast<unsigned char>(text[i + k]);
            if ((next & 0xc0U) != 0x80U) { return false; }
            point = (point << 6U) | (next & 0x3fU);
        }
        const bool overlong = (more == 2 && point < 0x800) || (more == 3 && point < 0x10000);
        if (overlong || point > 0x10ffff || (point >= 0xd800 && point < 0xe000)) { return false; }
        i += more + 1;
    }
    return true;
}

Result<Done> validate(const schema::DeployCreate& request, ComposeCheck check_compose)
{
    auto name = check_name(request.name);
    if (!name) { return name; }
    if (request.compose.size() > max_compose_bytes)
    {
        return refused("compose file: " + std::to_string(request.compose.size()) + " bytes; at most " +
                           std::to_string(max_compose_bytes) + " (256 KiB) are allowed",
                       "move data out of the compose file into images or volumes");
    }
    if (!is_utf8(request.compose)) { return refused("compose file: not UTF-8 text"); }
    auto compose = check_compose(request.compose);
    if (!compose)
    {
        Error error = std::move(compose).error();
        if (error.message.rfind("compose", 0) != 0) { error = std::move(error).within("compose file"); }
        error.code = Errc::invalid_argument;
        return error;
    }
    auto image = check_image_name(request.image);
    if (!image) { return image; }
    auto vcpu = check_size("vcpu", request.vcpu, 1, 256);
    if (!vcpu) { return vcpu; }
    auto memory = check_size("memory (MiB)", request.memory_mb, 64, 4 * 1024 * 1024);
    if (!memory) { return memory; }
    auto disk = check_size("disk (GiB)", request.disk_gb, 0, 64 * 1024);
    if (!disk) { return disk; }
    if (request.ready_timeout_ms < 1000 || request.ready_timeout_ms > 24ULL * 3600 * 1000)
    {
        return refused("ready timeout " + std::to_string(request.ready_timeout_ms) + " ms: not 1 s to 24 h");
    }
    return check_ports(request.ports);
}

} // namespace dstack::deployer
