#include "services/dstackup/policy_verbs.hpp"
#include "services/dstackup/layout.hpp"
#include "shared/process/fd.hpp"
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <spawn.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

extern char** environ;

namespace dstack::up
{

namespace
{

constexpr std::size_t max_report = 256 * 1024 * 1024; // a line for each of a hundred thousand apps

Result<std::string> auth_program(const Global& global)
{
    std::array<char, 4096> self{};
    const ssize_t length = ::readlink("/proc/self/exe", self.data(), self.size());
    if (length <= 0) { return errno_error("readlink /proc/self/exe", errno); }
    const auto* auth = std::find_if(roster.begin(), roster.end(), [](const Service& service) { return service.name == "auth"; });
    const auto candidates = program_candidates({self.data(), static_cast<std::size_t>(length)}, Layout{global.prefix}, *auth);
    for (const std::string& path : candidates)
    {
        if (::access(path.c_str(), X_OK) == 0) { return path; }
    }
    return Error{Errc::not_found, "dstack-auth, which reads policies, is not here: looked for " + candidates.front(), "install it, or build it", {}};
}

struct Report
{
    std::string text;
    int exit_code = 0;
};

/// What the program prints, to its end.
Result<Report> run(const std::string& program, const std::string& file, bool json)
{
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) { return errno_error("pipe", errno); }
    const process::Fd from{ends[0]};
    process::Fd to{ends[1]};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, to.get(), STDOUT_FILENO);
    std::array<std::string, 4> words{program, "--check-policy", file, "--json"};
    std::array<char*, 5> argv{words[0].data(), words[1].data(), words[2].data(), json ? words[3].data() : nullptr, nullptr};
    pid_t child = 0;
    const int failed = ::posix_spawn(&child, program.c_str(), &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (failed != 0) { return errno_error("start " + program, failed); }
    to.reset();
    Report out;
    std::array<char, 65536> buffer{};
    for (;;)
    {
        const ssize_t got = ::read(from.get(), buffer.data(), buffer.size());
        if (got < 0 && errno == EINTR) { continue; }
        if (got <= 0 || out.text.size() > max_report) { break; }
        out.text.append(buffer.data(), static_cast<std::size_t>(got));
    }
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    out.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : EX_SOFTWARE;
    return out;
}

} // namespace

int policy_check(const Global& global, const std::string& file)
{
    if (::access(file.c_str(), R_OK) != 0) { return print_error(global, errno_error("open " + file, errno)); }
    auto program = auth_program(global);
    if (!program) { return print_error(global, program.error()); }
    auto report = run(*program, file, global.json);
    if (!report) { return print_error(global, report.error()); }
    const std::string& text = report->text;
    const bool told = report->exit_code == EX_OK || report->exit_code == 1 || report->exit_code == EX_DATAERR;
    if (!told || text.empty())
    {
        return print_error(global, {Errc::internal, "dstack-auth --check-policy gave no report (exit code " + std::to_string(report->exit_code) + ")", {}, {}});
    }
    if (report->exit_code == EX_DATAERR)
    {
        const auto json = nlohmann::json::parse(text, nullptr, false);
        if (!json.is_object())
        {
            std::fwrite(text.data(), 1, text.size(), stderr);
            return exit_usage;
        }
        return print_error(global, {Errc::invalid_argument, file + ": no valid policy: " + json.value("error", ""),
                                    "with it every boot is denied; repair that place", {}});
    }
    if (global.json) { print_document("policy_check", text.substr(0, text.find_last_not_of('\n') + 1)); }
    else { std::fwrite(text.data(), 1, text.size(), stdout); }
    return report->exit_code == EX_OK ? static_cast<int>(exit_ok) : static_cast<int>(exit_precondition);
}

} // namespace dstack::up
