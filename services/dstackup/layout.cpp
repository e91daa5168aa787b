#include "services/dstackup/layout.hpp"

namespace dstack::up
{

namespace
{
std::string_view parent(std::string_view path)
{
    const auto slash = path.rfind('/');
    return slash == std::string_view::npos ? std::string_view{} : path.substr(0, slash);
}

std::string_view base_name(std::string_view path)
{
    const auto slash = path.rfind('/');
    return slash == std::string_view::npos ? path : path.substr(slash + 1);
}

std::vector<std::string_view> arguments(std::string_view cmdline)
{
    std::vector<std::string_view> out;
    while (!cmdline.empty())
    {
        const auto end = std::min(cmdline.find('\0'), cmdline.size());
        out.push_back(cmdline.substr(0, end));
        cmdline.remove_prefix(std::min(end + 1, cmdline.size()));
    }
    return out;
}
} // namespace

std::vector<std::string> program_candidates(std::string_view self, const Layout& layout, const Service& service)
{
    const std::string program = "dstack-" + std::string{service.name};
    const std::string here{parent(self)};         // BUILD/services/dstackup or PREFIX/bin
    const std::string tree{parent(parent(here))}; // BUILD
    const std::string installed{std::string{parent(here)} + "/libexec/dstack/"};
    return {tree + "/" + std::string{service.folder} + "/" + program, installed + program,
            layout.prefix + "/libexec/dstack/" + program};
}

bool is_command_of(std::string_view cmdline, const Layout& layout, std::string_view service)
{
    const auto args = arguments(cmdline);
    if (args.size() < 3 || base_name(args[0]) != "dstack-" + std::string{service}) { return false; }
    for (std::size_t i = 1; i + 1 < args.size(); ++i)
    {
        if (args[i] == "--config" && args[i + 1] == layout.config(service)) { return true; }
    }
    return false;
}

bool mentions_below(std::string_view cmdline, std::string_view folder)
{
    const std::string wanted = std::string{folder} + "/";
    for (const auto argument : arguments(cmdline))
    {
        if (argument.find(wanted) != std::string_view::npos) { return true; }
    }
    return false;
}

} // namespace dstack::up
