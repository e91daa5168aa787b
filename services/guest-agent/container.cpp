#include "services/guest-agent/container.hpp"
#include "services/guest-agent/host_disks.hpp"
#include "services/guest-agent/listening.hpp"
#include "services/guest-agent/restart.hpp"
#include "shared/log/log.hpp"
#include "shared/process/fd_ready.hpp"
#include <array>
#include <charconv>
#include <csignal>
#include <fcntl.h>
#include <filesystem>
#include <sys/mount.h>
#include <sys/stat.h>

namespace dstack::guest
{

namespace
{

namespace fs = std::filesystem;
constexpr std::string_view crun = "/usr/bin/crun";
constexpr std::string_view volumes_folder = "/run/dstack/volumes";

Result<Done> make_folder(const std::string& path)
{
    std::error_code code;
    fs::create_directories(path, code);
    if (code) { return errno_error("create " + path, code.value()); }
    return Done{};
}

Result<Done> write_file(const std::string& path, std::string_view text)
{
    const process::Fd fd{::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)};
    if (fd.get() < 0) { return errno_error("create " + path, errno); }
    if (::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    {
        return errno_error("write " + path, errno);
    }
    return Done{};
}

/// The image's own file, or nothing: what is missing there names no user.
std::string image_file(const StoredImage& image, std::string_view name)
{
    auto text =
        read_bounded(std::string{store_mount} + "/" + image.folder + "/rootfs/" + std::string{name}, 1024 * 1024);
    return text ? std::move(*text) : std::string{};
}

} // namespace

Container::Container(Loop& loop, Console& console, compose::Service service, StoredImage image)
    : loop_(loop), console_(console), service_(std::move(service)), image_(std::move(image)),
      folder_("/run/dstack/containers/" + service_.name), prefix_(service_.name), started_(loop), ended_(loop),
      stop_(loop), scope_(loop)
{
}

Container::~Container() = default;

Result<Done> Container::prepare()
{
    auto user = resolve_user(service_.user.empty() ? image_.config.user : service_.user,
                             image_file(image_, "etc/passwd"), image_file(image_, "etc/group"));
    if (!user) { return std::move(user).error().within("service " + service_.name); }
    for (const char* part : {"/upper", "/work", "/rootfs"})
    {
        if (auto made = make_folder(folder_ + part); !made) { return made; }
    }
    for (const compose::Mount& mount : service_.mounts)
    {
        if (mount.kind != compose::Mount::Kind::volume) { continue; }
        if (auto made = make_folder(std::string{volumes_folder} + "/" + mount.source); !made) { return made; }
    }
    const std::string lower = std::string{store_mount} + "/" + image_.folder + "/rootfs";
    const std::string overlay = "lowerdir=" + lower + ",upperdir=" + folder_ + "/upper,workdir=" + folder_ + "/work";
    if (::mount("overlay", (folder_ + "/rootfs").c_str(), "overlay", MS_NODEV | MS_NOSUID, overlay.c_str()) != 0)
    {
        return errno_error("service " + service_.name + ": mount overlay", errno);
    }
    const ContainerPaths paths{folder_ + "/rootfs", "/run/dstack/hosts", "/etc/resolv.conf", folder_ + "/hostname",
                               std::string{volumes_folder}};
    auto spec = oci_spec(service_, image_.config, *user, paths);
    if (!spec) { return std::move(spec).error(); }
    if (auto written = write_file(folder_ + "/config.json", *spec); !written) { return written; }
    if (auto written =
            write_file(paths.hostname, (service_.hostname.empty() ? service_.name : service_.hostname) + "\n");
        !written)
    {
        return written;
    }
    if (::mkfifo((folder_ + "/output").c_str(), 0600) != 0)
    {
        return errno_error("create " + folder_ + "/output", errno);
    }
    output_ = process::Fd{
        ::open((folder_ + "/output").c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC)}; // read and write: never at its end
    if (output_.get() < 0) { return errno_error("open " + folder_ + "/output", errno); }
    return Done{};
}

std::optional<int> Container::pid() const
{
    auto text = read_bounded(folder_ + "/pid", 32);
    int out = 0;
    if (!text || std::from_chars(text->data(), text->data() + text->size(), out).ec != std::errc{} || out <= 1)
    {
        return std::nullopt;
    }
    return out;
}

/// What the container says goes to the console; a slow console slows it down.
Task<> Container::pump()
{
    process::FdReady ready{loop_, output_.get()};
    std::array<char, 16384> buffer{};
    for (;;)
    {
        if (console_.full()) { co_await console_.room(); }
        const ssize_t got = ::read(output_.get(), buffer.data(), buffer.size());
        if (got > 0)
        {
            console_.write(prefix_.feed({buffer.data(), static_cast<std::size_t>(got)}));
            co_await next_turn(loop_);
            continue;
        }
        ready.arm();
        co_await ready.wait();
    }
}

Task<> Container::watch_start()
{
    while (!pid())
    {
        const milliseconds pause{5};
        co_await sleep_for(loop_, pause);
    }
    started_.set();
}

Task<> Container::once()
{
    std::error_code code;
    fs::remove(folder_ + "/pid", code);
    fs::remove_all("/run/crun/" + service_.name, code); // left over when crun itself was killed
    process::Spec spec;
    spec.argv = {
        std::string{crun}, "--root",         "/run/crun",  "--cgroup-manager=cgroupfs", "run", "--bundle", folder_,
        "--pid-file",      folder_ + "/pid", service_.name};
    spec.out = {process::Sink::Kind::file, folder_ + "/output"};
    spec.err = spec.out;
    auto child = process::spawn(loop_, spec);
    if (!child)
    {
        failed_ = true;
        last_exit_ = child.error().message;
        co_return;
    }
    Scope starting{loop_};
    starting.spawn(watch_start());
    auto exit = co_await child->wait();
    failed_ = !exit || !exit->ok();
    last_exit_ = exit ? process::to_string(*exit) : exit.error().message;
}

Task<Result<Done>> Container::wait_ended()
{
    co_await ended_.wait();
    co_return Done{};
}

Task<Result<Done>> Container::wait_stop()
{
    co_await stop_.wait();
    co_return Done{};
}

Task<> Container::run()
{
    scope_.spawn(pump());
    for (unsigned attempts = 1; !stop_.is_set(); ++attempts)
    {
        const auto begin = loop_.now();
        log::info("service starting", {{"service", service_.name}, {"image", image_.reference}, {"attempt", attempts}});
        co_await once();
        const auto ran = loop_.now() - begin;
        if (ran >= settled_after) { attempts = 1; }
        const auto delay = stop_.is_set() ? std::nullopt : restart_delay(service_.restart, failed_, attempts);
        const auto ran_ms = std::chrono::duration_cast<milliseconds>(ran).count();
        log::info(
            "service ended",
            {{"service", service_.name}, {"how", last_exit_}, {"ran_ms", ran_ms}, {"restart", delay.has_value()}});
        if (!delay) { break; }
        auto stopping = wait_stop();
        const std::string what{"restart"};
        auto interrupted = co_await with_timeout(loop_, *delay, what, std::move(stopping));
        if (interrupted) { break; }
    }
    started_.set();
    ended_.set();
}

Task<> Container::stop(milliseconds grace)
{
    stop_.set();
    if (ended_.is_set()) { co_return; }
    const auto process = pid();
    if (process)
    {
        auto status = read_bounded("/proc/" + std::to_string(*process) + "/status", 64 * 1024);
        if (status && catches_sigterm(*status)) { ::kill(*process, SIGTERM); }
        else { grace = milliseconds{0}; }
    }
    if (process && grace.count() > 0)
    {
        auto waiting = wait_ended();
        const std::string what{"stop"};
        auto in_time = co_await with_timeout(loop_, grace, what, std::move(waiting));
        if (in_time) { co_return; }
        log::warn("service did not stop in time", {{"service", service_.name}, {"grace_ms", grace.count()}});
    }
    const auto survivor = pid();                  // a start that was just under way
    if (survivor) { ::kill(*survivor, SIGKILL); } // its namespace ends with it
    auto waiting = wait_ended();
    const std::string what{"kill"};
    const milliseconds limit{3'000};
    auto gone = co_await with_timeout(loop_, limit, what, std::move(waiting));
    if (!gone) { log::warn("service did not end", {{"service", service_.name}}); }
}

} // namespace dstack::guest
