#include "services/guest-agent/listening.hpp"
#include <charconv>
#include <csignal>

namespace dstack::guest
{

namespace
{

std::string_view take_word(std::string_view& line)
{
    line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
    const std::string_view word = line.substr(0, line.find_first_of(" \t"));
    line.remove_prefix(word.size());
    return word;
}

} // namespace

std::set<std::uint16_t> listening_ports(std::string_view text)
{
    std::set<std::uint16_t> out;
    while (!text.empty())
    {
        const std::size_t end = text.find('\n');
        std::string_view line = text.substr(0, end);
        text = end == std::string_view::npos ? std::string_view{} : text.substr(end + 1);
        take_word(line); // "0:"
        const std::string_view local = take_word(line);
        take_word(line); // remote
        const std::string_view state = take_word(line);
        const std::size_t colon = local.find(':');
        std::uint16_t port = 0;
        if (state != "0A" || colon == std::string_view::npos) { continue; }
        const std::string_view digits = local.substr(colon + 1);
        if (std::from_chars(digits.data(), digits.data() + digits.size(), port, 16).ec == std::errc{})
        {
            out.insert(port);
        }
    }
    return out;
}

bool catches_sigterm(std::string_view status)
{
    constexpr std::string_view key = "\nSigCgt:";
    const std::size_t at = status.find(key);
    if (at == std::string_view::npos) { return true; } // not known: give it the chance
    std::string_view rest = status.substr(at + key.size());
    const std::string_view digits = take_word(rest);
    std::uint64_t mask = 0;
    const std::string_view hex = digits.substr(0, digits.find('\n'));
    if (std::from_chars(hex.data(), hex.data() + hex.size(), mask, 16).ec != std::errc{}) { return true; }
    return (mask >> (SIGTERM - 1) & 1U) != 0;
}

} // namespace dstack::guest
