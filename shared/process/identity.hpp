#pragma once
#include "shared/base/result.hpp"
#include <cstdint>
#include <string>
#include <string_view>
#include <sys/types.h>

namespace dstack::process
{

/// Which process, also after its pid has been recycled and after a reboot of the host.
struct Identity
{
    pid_t pid = 0;
    std::uint64_t start_ticks = 0; ///< field 22 of /proc/<pid>/stat: clock ticks since boot
    std::string boot_id{};         ///< /proc/sys/kernel/random/boot_id of the boot in which the ticks were counted
    friend bool operator==(const Identity&, const Identity&) = default;
};

struct Stat
{
    char state = '?'; ///< 'R' 'S' 'D' 'Z' ...
    pid_t parent = 0;
    std::uint64_t start_ticks = 0;
};

/// The text of /proc/<pid>/stat; the command name may hold blanks and parentheses. (proc(5))
Result<Stat> parse_stat(std::string_view text);
/// not_found when there is no such process.
Result<Stat> read_stat(pid_t pid);
/// The identity of a process that runs now.
Result<Identity> identify(pid_t pid);
/// True when exactly this process still runs; a zombie does not.
bool alive(const Identity& who);

/// "<pid> <start_ticks> <boot_id>\n" for a pid file; `decode` accepts nothing else.
std::string encode(const Identity& who);
Result<Identity> decode(std::string_view text);

} // namespace dstack::process
