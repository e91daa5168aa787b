#include "services/vmm-local/service.hpp"
#include "services/vmm-local/api.hpp"
#include "shared/log/log.hpp"
#include "shared/state/files.hpp"
#include <systemd/sd-daemon.h>

namespace dstack::vmm
{

namespace
{
constexpr milliseconds drain_limit{5'000};

/// QEMU's version and the KVM probe, off the way of whoever waits for readiness; a first start waits for it if need be.
Task<> probe_in_background(Loop& loop, AccelProbe* probe)
{
    co_await sleep_for(loop, milliseconds{500});
    auto prepared = co_await probe->prepare();
    if (!prepared) { log::error("qemu is not usable", {{"error", prepared.error().message}}); }
}
/// The sockets that the service manager passed in (it listens, also while we restart), else the configured address.
Result<Done> listen(http::Server& server, const Config& config)
{
    const int passed = sd_listen_fds(0);
    for (int fd = SD_LISTEN_FDS_START; fd < SD_LISTEN_FDS_START + passed; ++fd)
    {
        auto taken = server.listen_fd(fd);
        if (!taken) { return taken; }
    }
    return passed > 0 ? Result<Done>{Done{}} : server.listen_tcp(config.listen, config.port);
}
} // namespace

Task<Result<Done>> serve(Daemon& daemon, Config config)
{
    Loop& loop = daemon.loop();
    auto made = state::make_dirs(config.state_dir, 0755);
    if (!made) { co_return made; }
    // One VMM per state directory: two would start the same VM twice.
    auto lock = state::FileLock::acquire(config.state_dir + "/lock", milliseconds{3'000});
    if (!lock) { co_return std::move(lock).error().within("another dstack-vmm-local uses " + config.state_dir); }
    auto events = bus::Publisher::open(loop, config.state_dir, bus::ClientConfig{config.bus_directory, "vmm-local"});
    if (!events) { co_return std::move(events).error(); }
    Vmm vmm{loop, config, **events};
    auto opened = co_await vmm.open();
    if (!opened) { co_return opened; }
    (*events)->start();

    Api api{vmm};
    http::Limits limits;
    limits.max_body_bytes = 10 * 1024 * 1024;
    limits.max_connections = 256;
    limits.handler_timeout = milliseconds{120'000};
    http::Server server{loop, limits, [&api](http::Request request) { return api.handle(std::move(request)); }};
    server.plan_body(plan_api_body);
    auto listening = listen(server, config);
    if (!listening) { co_return listening; }
    Scope background{loop};
    background.spawn(probe_in_background(loop, &vmm.probe()));
    log::info("serving", {{"listen", config.listen}, {"port", server.port()}, {"state", config.state_dir}});
    daemon.ready();

    co_await daemon.stop_requested();
    background.cancel();
    server.stop_accepting();
    co_await vmm.close(drain_limit);
    co_await server.drain(milliseconds{1'000});
    co_await (*events)->stop(milliseconds{2'000});
    log::info("stopped; guests go on");
    co_return Done{};
}

} // namespace dstack::vmm
