#pragma once
#include "shared/base/result.hpp"
#include "shared/runtime/loop.hpp"
#include <functional>
#include <string>
#include <string_view>

namespace dstack
{

/// What the skeleton lends a service: the loop, the wish to stop, and the line to its supervisor.
class Daemon
{
  public:
    explicit Daemon(Loop& loop) : loop_(loop), stop_(loop), reload_(loop) {}
    Loop& loop() { return loop_; }
    /// `co_await daemon.stop_requested();` completes on SIGTERM or SIGINT.
    Event::Awaiter stop_requested() { return stop_.wait(); }
    bool stopping() const { return stop_.is_set(); }
    void request_stop() { stop_.set(); }
    /// Set by SIGHUP; the service resets it when it has reloaded.
    Event& reload() { return reload_; }
    /// READY=1 to the supervisor (sd_notify protocol), when there is one.
    void ready();
    /// STATUS=... to the supervisor.
    void status(std::string_view text);

  private:
    Loop& loop_;
    Event stop_;
    Event reload_;
};

struct DaemonInfo
{
    std::string_view name;           ///< "dstack-auth"
    std::string_view description;    ///< one line for --help
    std::string_view default_config; ///< "/etc/dstack/auth.toml"
    std::string_view more_usage = {}; ///< further lines of --help's usage
};

/// The service: runs until it has stopped; an error is logged once and becomes exit code 70.
using Serve = std::function<Task<Result<Done>>(Daemon&)>;

/// One skeleton owns argv (--config FILE, --check-config, --version, --help), signals (SIGTERM, SIGINT: stop; SIGHUP: reload;
/// SIGPIPE ignored), the watchdog (fed from the loop), readiness and exit codes: 0 ok, 64 usage, 70 the service failed,
/// 78 the configuration was refused (with file, line and column).
/// `prepare` turns the text of the configuration into the service, without side effects.
int run_daemon(int argc, char** argv, DaemonInfo info, const std::function<Result<Serve>(std::string_view toml)>& prepare);

/// The same without argv and configuration: signals, watchdog, readiness, exit codes 0 and 70.
int run_service(std::string_view name, bool debug, Serve serve);

/// For services whose parts are `Result<Config> parse(std::string_view)` and `Task<Result<Done>> serve(Daemon&, Config)`.
template <class Config>
int run_daemon(int argc, char** argv, DaemonInfo info, Result<Config> (*parse)(std::string_view),
               Task<Result<Done>> (*serve)(Daemon&, Config))
{
    const auto prepare = [parse, serve](std::string_view toml) -> Result<Serve>
    {
        auto config = parse(toml);
        if (!config) { return std::move(config).error(); }
        return Serve{[serve, config = std::move(*config)](Daemon& daemon) { return serve(daemon, config); }};
    };
    return run_daemon(argc, argv, info, prepare);
}

} // namespace dstack
