#include "shared/runtime/daemon.hpp"
#include "shared/log/log.hpp"
#include <array>
#include <csignal>
#include <cstdio>
#include <fcntl.h>
#include <link.h>
#include <optional>
#include <string_view>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sysexits.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>
#include <vector>

namespace dstack
{

namespace
{

constexpr std::size_t max_config_bytes = 1024 * 1024;

Result<std::string> read_config(const std::string& path)
{
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) { return errno_error("open " + path, errno); }
    std::string text;
    std::array<char, 16384> buffer{};
    ssize_t got = 0;
    while ((got = ::read(fd, buffer.data(), buffer.size())) > 0 && text.size() <= max_config_bytes)
    {
        text.append(buffer.data(), static_cast<std::size_t>(got));
    }
    const int read_errno = errno;
    ::close(fd);
    if (got < 0) { return errno_error("read " + path, read_errno); }
    if (text.size() > max_config_bytes) { return Error{Errc::resource_exhausted, path + ": larger than 1 MiB", {}, {}}; }
    return text;
}

struct Arguments
{
    std::string config;
    bool check_config = false;
    bool debug = false;
    std::optional<int> exit_code;
};

Arguments parse_arguments(int argc, char** argv, const DaemonInfo& info)
{
    Arguments out;
    out.config = info.default_config;
    const std::vector<std::string_view> args(argv + 1, argv + argc);
    for (std::size_t i = 0; i < args.size(); ++i)
    {
        if (args[i] == "--config" && i + 1 < args.size()) { out.config = args[++i]; }
        else if (args[i].starts_with("--config=")) { out.config = args[i].substr(9); }
        else if (args[i] == "--check-config") { out.check_config = true; }
        else if (args[i] == "--debug") { out.debug = true; }
        else if (args[i] == "--version")
        {
            std::printf("%s %s\n", info.name.data(), DSTACK_VERSION);
            out.exit_code = EX_OK;
            return out;
        }
        else if (args[i] == "--help" || args[i] == "-h")
        {
            std::printf("%s - %s\n\nusage: %s [--config FILE] [--check-config] [--debug] [--version]\n%.*s\n"
                        "  --config FILE   default %s\n  --check-config  read the configuration, say what is wrong, exit\n",
                        info.name.data(), info.description.data(), info.name.data(), static_cast<int>(info.more_usage.size()),
                        info.more_usage.data(), info.default_config.data());
            out.exit_code = EX_OK;
            return out;
        }
        else
        {
            std::fprintf(stderr, "%s: unknown argument '%.*s': see %s --help\n", info.name.data(),
                         static_cast<int>(args[i].size()), args[i].data(), info.name.data());
            out.exit_code = EX_USAGE;
            return out;
        }
    }
    return out;
}

UvHandle<uv_signal_t> on_signal(Loop& loop, int number, Daemon& daemon, uv_signal_cb callback)
{
    auto handle = make_uv<uv_signal_t>([&](uv_signal_t* h) { return uv_signal_init(loop.raw(), h); });
    handle->data = &daemon;
    uv_signal_start(handle.get(), callback, number);
    uv_unref(reinterpret_cast<uv_handle_t*>(handle.get()));
    return handle;
}

/// Fed from the loop, so a stuck loop is restarted by the supervisor.
UvHandle<uv_timer_t> start_watchdog(Loop& loop)
{
    std::uint64_t period_us = 0;
    if (sd_watchdog_enabled(0, &period_us) <= 0) { return nullptr; }
    auto timer = make_uv<uv_timer_t>([&](uv_timer_t* h) { return uv_timer_init(loop.raw(), h); });
    const std::uint64_t half_ms = period_us / 2000;
    uv_timer_start(
        timer.get(), [](uv_timer_t*) { sd_notify(0, "WATCHDOG=1"); }, 0, half_ms > 0 ? half_ms : 1);
    uv_unref(reinterpret_cast<uv_handle_t*>(timer.get()));
    return timer;
}

Task<> serve_to_end(Daemon& daemon, Serve serve, int& exit_code)
{
    auto outcome = co_await serve(daemon);
    if (!outcome)
    {
        log::error("service failed", {{"error", outcome.error().message}, {"code", to_string(outcome.error().code)}});
        exit_code = EX_SOFTWARE;
    }
}

} // namespace

namespace
{
/// Start-up touches much that never runs again: relocation, constructors of a dozen libraries. Unmaps what can be read back from
/// the files (segments that were never writable); what is still needed comes back from the page cache.
int unmap_start_up(dl_phdr_info* info, std::size_t, void*)
{
    if (std::string_view{info->dlpi_name}.starts_with("linux-vdso")) { return 0; }
    const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
    for (int i = 0; i < info->dlpi_phnum; ++i)
    {
        const auto& segment = info->dlpi_phdr[i];
        if (segment.p_type != PT_LOAD || (segment.p_flags & PF_W) != 0) { continue; }
        const std::uintptr_t begin = (info->dlpi_addr + segment.p_vaddr) & ~(page - 1);
        const std::uintptr_t end = (info->dlpi_addr + segment.p_vaddr + segment.p_memsz) & ~(page - 1); // the last page may be shared
        if (end > begin) { ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED); }
    }
    return 0;
}
} // namespace

void Daemon::ready()
{
    sd_notify(0, "READY=1");
    ::dl_iterate_phdr(unmap_start_up, nullptr);
}

void Daemon::status(std::string_view text)
{
    const std::string line = "STATUS=" + std::string{text};
    sd_notify(0, line.c_str());
}

namespace
{
int serve_on_a_loop(Serve serve);
} // namespace

int run_service(std::string_view name, bool debug, Serve serve)
{
    log::init(name, debug ? log::Level::debug : log::Level::info);
    return serve_on_a_loop(std::move(serve));
}

int run_daemon(int argc, char** argv, DaemonInfo info,
               const std::function<Result<Serve>(std::string_view toml)>& prepare)
{
    const Arguments arguments = parse_arguments(argc, argv, info);
    if (arguments.exit_code) { return *arguments.exit_code; }
    log::init(info.name, arguments.debug ? log::Level::debug : log::Level::info);

    auto text = read_config(arguments.config);
    if (!text)
    {
        log::error("config unreadable", {{"error", text.error().message}});
        return EX_CONFIG;
    }
    auto serve = prepare(*text);
    if (!serve)
    {
        log::error("config refused", {{"file", arguments.config}, {"error", serve.error().message}});
        return EX_CONFIG;
    }
    if (arguments.check_config)
    {
        std::printf("%s: ok\n", arguments.config.c_str());
        return EX_OK;
    }
    return serve_on_a_loop(std::move(*serve));
}

namespace
{
int serve_on_a_loop(Serve serve)
{
    std::signal(SIGPIPE, SIG_IGN);
    int exit_code = EX_OK;
    Loop loop;
    {
        Daemon daemon{loop};
        const auto stop = [](uv_signal_t* h, int)
        {
            sd_notify(0, "STOPPING=1");
            static_cast<Daemon*>(h->data)->request_stop();
        };
        const auto term = on_signal(loop, SIGTERM, daemon, stop);
        const auto interrupt = on_signal(loop, SIGINT, daemon, stop);
        const auto hangup =
            on_signal(loop, SIGHUP, daemon, [](uv_signal_t* h, int) { static_cast<Daemon*>(h->data)->reload().set(); });
        const auto watchdog = start_watchdog(loop);
        loop.run(serve_to_end(daemon, std::move(serve), exit_code));
    }
    return exit_code;
}
} // namespace

} // namespace dstack
