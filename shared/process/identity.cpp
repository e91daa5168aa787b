#include "shared/process/identity.hpp"
#include "shared/process/fd.hpp"
#include <array>
#include <cerrno>
#include <charconv>
#include <fcntl.h>
#include <unistd.h>
#include <vector>

namespace dstack::process
{

namespace
{
/// /proc files: one short read, no size known before.
Result<std::string> read_small(const std::string& path)
{
    const Fd fd{open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    if (!fd) { return errno_error("read " + path, errno); }
    std::array<char, 4096> buffer{};
    const ssize_t n = read(fd.get(), buffer.data(), buffer.size());
    if (n < 0) { return errno_error("read " + path, errno); }
    return std::string{buffer.data(), static_cast<std::size_t>(n)};
}

std::vector<std::string_view> words(std::string_view text)
{
    std::vector<std::string_view> out;
    constexpr std::string_view blank = " \t\n";
    while (true)
    {
        const auto start = text.find_first_not_of(blank);
        if (start == std::string_view::npos) { return out; }
        text.remove_prefix(start);
        const auto end = std::min(text.find_first_of(blank), text.size());
        out.push_back(text.substr(0, end));
        text.remove_prefix(end);
    }
}

template <class T>
bool number(std::string_view text, T& out)
{
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
    return error == std::errc{} && end == text.data() + text.size();
}

Result<std::string> boot_id()
{
    auto text = read_small("/proc/sys/kernel/random/boot_id");
    if (!text) { return text; }
    while (!text->empty() && text->back() == '\n') { text->pop_back(); }
    return text;
}
} // namespace

Result<Stat> parse_stat(std::string_view text)
{
    const auto end_of_name = text.rfind(')');
    if (end_of_name == std::string_view::npos) { return Error{Errc::data_loss, "process stat: no command name"}; }
    const auto fields = words(text.substr(end_of_name + 1)); // fields[0] is field 3, the state
    Stat stat;
    if (fields.size() < 20 || fields[0].size() != 1 || !number(fields[1], stat.parent) ||
        !number(fields[19], stat.start_ticks))
    {
        return Error{Errc::data_loss, "process stat: fields missing"};
    }
    stat.state = fields[0][0];
    return stat;
}

Result<Stat> read_stat(pid_t pid)
{
    auto text = read_small("/proc/" + std::to_string(pid) + "/stat");
    if (!text) { return std::move(text).error(); }
    return parse_stat(*text);
}

Result<Identity> identify(pid_t pid)
{
    auto boot = boot_id();
    if (!boot) { return std::move(boot).error(); }
    const auto stat = read_stat(pid);
    if (!stat) { return stat.error(); }
    return Identity{pid, stat->start_ticks, std::move(*boot)};
}

bool alive(const Identity& who)
{
    if (who.pid <= 0) { return false; }
    const auto stat = read_stat(who.pid);
    if (!stat || stat->start_ticks != who.start_ticks || stat->state == 'Z' || stat->state == 'X') { return false; }
    const auto boot = boot_id();
    return boot && *boot == who.boot_id;
}

std::string encode(const Identity& who)
{
    return std::to_string(who.pid) + " " + std::to_string(who.start_ticks) + " " + who.boot_id + "\n";
}

Result<Identity> decode(std::string_view text)
{
    const auto fields = words(text);
    Identity who;
    if (fields.size() != 3 || !number(fields[0], who.pid) || who.pid <= 0 || !number(fields[1], who.start_ticks))
    {
        return Error{Errc::data_loss, "process identity: expected \"<pid> <start ticks> <boot id>\""};
    }
    who.boot_id = fields[2];
    return who;
}

} // namespace dstack::process
