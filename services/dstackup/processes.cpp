#include "services/dstackup/processes.hpp"
#include "shared/state/files.hpp"
#include <algorithm>
#include <charconv>
#include <dirent.h>
#include <memory>
#include <sys/stat.h>
#include <unistd.h>

namespace dstack::up
{

namespace
{
constexpr std::size_t max_cmdline = 256 * 1024;

std::optional<pid_t> pid_of(std::string_view name)
{
    pid_t pid = 0;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), pid);
    if (error != std::errc{} || end != name.data() + name.size() || pid <= 0) { return std::nullopt; }
    return pid;
}
} // namespace

std::vector<Running> find_processes(const std::function<bool(std::string_view cmdline)>& wanted)
{
    std::vector<Running> out;
    const auto close_dir = [](DIR* dir) { closedir(dir); };
    const std::unique_ptr<DIR, decltype(close_dir)> proc{opendir("/proc"), close_dir};
    if (!proc) { return out; }
    while (const dirent* entry = readdir(proc.get()))
    {
        const auto pid = pid_of(entry->d_name);
        if (!pid || *pid == getpid()) { continue; }
        const std::string folder = "/proc/" + std::to_string(*pid);
        struct stat info
        {
        };
        if (stat(folder.c_str(), &info) != 0 || info.st_uid != geteuid()) { continue; }
        auto cmdline = state::read_file(folder + "/cmdline", max_cmdline);
        if (!cmdline || cmdline->empty() || !wanted(*cmdline)) { continue; }
        const auto who = process::identify(*pid);
        auto again = state::read_file(folder + "/cmdline", max_cmdline);
        if (!who || !again || *again != *cmdline) { continue; } // the pid went to another process meanwhile
        out.push_back({*who, std::move(*cmdline)});
    }
    std::sort(out.begin(), out.end(),
              [](const Running& a, const Running& b) { return a.who.start_ticks < b.who.start_ticks; });
    return out;
}

RunningServices::RunningServices(const Layout& layout)
    : layout_(layout), running_(find_processes([&](std::string_view cmdline)
                                               { return cmdline.find(layout.etc()) != std::string_view::npos; }))
{
}

std::optional<process::Identity> RunningServices::find(std::string_view service) const
{
    const auto found = std::find_if(running_.begin(), running_.end(),
                                    [&](const Running& r) { return is_command_of(r.cmdline, layout_, service); });
    if (found == running_.end()) { return std::nullopt; }
    return found->who;
}

std::uint64_t resident_bytes(pid_t pid)
{
    const auto text = state::read_file("/proc/" + std::to_string(pid) + "/statm", 4096);
    if (!text) { return 0; }
    const auto blank = text->find(' ');
    if (blank == std::string::npos) { return 0; }
    std::uint64_t pages = 0;
    std::from_chars(text->data() + blank + 1, text->data() + text->size(), pages);
    return pages * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}

} // namespace dstack::up
