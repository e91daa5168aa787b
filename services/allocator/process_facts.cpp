#include "services/allocator/process_facts.hpp"
#include "shared/config/config.hpp"
#include <algorithm>
#include <charconv>

namespace dstack::allocator
{

namespace
{

constexpr std::uint32_t last_cid = 0xffff'fffe;

/// The digits at the beginning, and nothing behind them but what `ends` has.
std::optional<std::uint32_t> leading_number(std::string_view text, std::string_view ends)
{
    std::uint32_t value = 0;
    const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (failed != std::errc{}) { return std::nullopt; }
    const bool whole = end == text.data() + text.size() || ends.find(*end) != std::string_view::npos;
    return whole ? std::optional{value} : std::nullopt;
}

/// `visit` with what follows each occurrence of `key`.
template <class F>
void each_after(std::string_view text, std::string_view key, F visit)
{
    for (auto at = text.find(key); at != std::string_view::npos; at = text.find(key, at + key.size())) { visit(text.substr(at + key.size())); }
}

std::vector<std::string_view> arguments_of(std::string_view command_line)
{
    std::vector<std::string_view> out;
    while (!command_line.empty())
    {
        const auto end = std::min(command_line.find('\0'), command_line.size());
        out.push_back(command_line.substr(0, end));
        command_line.remove_prefix(std::min(end + 1, command_line.size()));
    }
    return out;
}

/// "tcp:127.0.0.1:18000-:80": protocol, address and port of the host.
std::optional<Resource> forward(std::string_view text)
{
    Resource out;
    const auto colon = text.find(':');
    if (colon == std::string_view::npos) { return std::nullopt; }
    out.protocol = colon == 0 ? "tcp" : text.substr(0, colon);
    if (out.protocol != "tcp" && out.protocol != "udp") { return std::nullopt; }
    text.remove_prefix(colon + 1);
    const auto dash = text.find('-');
    const std::string_view host = text.substr(0, dash);
    const auto last = host.rfind(':');
    if (dash == std::string_view::npos || last == std::string_view::npos) { return std::nullopt; }
    std::string_view address = host.substr(0, last);
    if (address.size() > 2 && address.front() == '[' && address.back() == ']') { address = address.substr(1, address.size() - 2); }
    out.address = Address::parse(address.empty() ? "0.0.0.0" : address);
    const auto port = leading_number(host.substr(last + 1), "");
    if (!out.address || !port || *port == 0 || *port > 65535) { return std::nullopt; }
    out.value = *port;
    return out;
}

} // namespace

std::vector<std::uint32_t> cids_of_command_line(std::string_view command_line)
{
    std::vector<std::uint32_t> out;
    each_after(command_line, "guest-cid=",
               [&](std::string_view rest)
               {
                   const auto cid = leading_number(rest, std::string_view{",\0 \"}", 5});
                   if (cid && *cid > 2 && *cid <= last_cid) { out.push_back(*cid); }
               });
    return out;
}

std::vector<Resource> forwards_of_command_line(std::string_view command_line)
{
    std::vector<Resource> out;
    each_after(command_line, "hostfwd=",
               [&](std::string_view rest)
               {
                   const std::string_view item = rest.substr(0, rest.find_first_of(std::string_view{",\0", 2}));
                   if (auto one = forward(item)) { out.push_back(std::move(*one)); }
               });
    return out;
}

std::string printable_command(std::string_view command_line, std::size_t limit)
{
    std::string out;
    for (const char c : command_line.substr(0, limit)) { out += c == '\0' ? ' ' : (c >= 0x20 && c < 0x7f ? c : '?'); }
    while (!out.empty() && out.back() == ' ') { out.pop_back(); }
    return out;
}

std::string unit_of_cgroup(std::string_view text)
{
    std::string path;
    while (!text.empty())
    {
        const std::string_view line = text.substr(0, text.find('\n'));
        text.remove_prefix(std::min(line.size() + 1, text.size()));
        const auto first = line.find(':');
        const auto second = first == std::string_view::npos ? first : line.find(':', first + 1);
        if (second == std::string_view::npos) { continue; }
        const std::string_view controllers = line.substr(first + 1, second - first - 1);
        const std::string_view group = line.substr(second + 1);
        const bool of_systemd = controllers == "name=systemd" || (controllers.empty() && path.empty());
        if (of_systemd && group != "/") { path = group; }
    }
    std::string_view rest{path};
    while (!rest.empty())
    {
        const auto slash = rest.rfind('/');
        const std::string_view name = rest.substr(slash == std::string_view::npos ? 0 : slash + 1);
        if (name.ends_with(".service") || name.ends_with(".scope") || name.ends_with(".socket")) { return printable_command(name, 256); }
        rest = slash == std::string_view::npos ? std::string_view{} : rest.substr(0, slash);
    }
    return printable_command(path, 256);
}

std::string_view program_of_command_line(std::string_view command_line)
{
    const std::string_view first = command_line.substr(0, command_line.find('\0'));
    const auto slash = first.rfind('/');
    return slash == std::string_view::npos ? first : first.substr(slash + 1);
}

std::string config_of_command_line(std::string_view command_line)
{
    const auto words = arguments_of(command_line);
    for (std::size_t i = 1; i < words.size(); ++i)
    {
        if ((words[i] == "-c" || words[i] == "--config") && i + 1 < words.size()) { return std::string{words[i + 1]}; }
        if (words[i].starts_with("--config=")) { return std::string{words[i].substr(9)}; }
        if (words[i].starts_with("-c") && words[i].size() > 2) { return std::string{words[i].substr(words[i][2] == '=' ? 3 : 2)}; }
    }
    return {};
}

std::uint32_t VmmConfig::cid_last() const
{
    const std::uint64_t beyond = std::uint64_t{cid_start} + cid_pool_size;
    return beyond == cid_start ? cid_start : static_cast<std::uint32_t>(std::min<std::uint64_t>(beyond - 1, last_cid));
}

VmmConfig parse_vmm_config(const std::vector<std::string>& texts)
{
    VmmConfig out;
    for (const std::string& text : texts)
    {
        auto document = config::Document::parse(text);
        if (!document) { continue; }
        document->section("cvm").read("cid_start", out.cid_start, 0, 0xffff'ffff).read("cid_pool_size", out.cid_pool_size, 0, 0xffff'ffff);
        document->section("host_api").read("port", out.host_api_port, 0, 0xffff'ffff);
    }
    return out;
}

std::vector<std::uint32_t> cids_of_libvirt_domain(std::string_view xml)
{
    std::vector<std::uint32_t> out;
    each_after(xml, "<cid ",
               [&](std::string_view rest)
               {
                   const std::string_view element = rest.substr(0, rest.find('>'));
                   const auto at = element.find("address=");
                   if (at == std::string_view::npos || at + 9 >= element.size()) { return; }
                   const auto cid = leading_number(element.substr(at + 9), "'\"");
                   if (cid && *cid > 2 && *cid <= last_cid) { out.push_back(*cid); }
               });
    return out;
}

} // namespace dstack::allocator
