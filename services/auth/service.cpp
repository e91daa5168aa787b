#include "services/auth/service.hpp"
#include "bus/client/client.hpp"
#include "services/auth/audit_commands.hpp"
#include "services/auth/chain/chain_backend.hpp"
#include "services/auth/policy_commands.hpp"
#include "services/auth/policy_edit.hpp"
#include "services/auth/webhook.hpp"
#include "shared/base/time.hpp"
#include "shared/http/server.hpp"
#include "shared/log/log.hpp"
#include "shared/state/files.hpp"
#include <charconv>
#include <systemd/sd-daemon.h>

namespace dstack::auth
{

namespace
{

constexpr milliseconds drain_limit{5000};
constexpr milliseconds publish_limit{10'000};
constexpr milliseconds connect_limit{5000};
constexpr milliseconds retry_after{500};
constexpr std::size_t publish_batch = 64;

http::Limits limits_of(const Config& config)
{
    http::Limits out;
    out.idle_timeout = config.idle_timeout;
    out.header_timeout = config.request_timeout;
    out.body_timeout = config.request_timeout;
    out.handler_timeout = config.request_timeout;
    out.write_timeout = config.request_timeout;
    return out;
}

/// The number of the last record that became an event. Losing it only sends events again, which the bus knows by their
/// id.
std::uint64_t read_cursor(const std::string& path)
{
    std::uint64_t out = 0;
    const auto text = state::read_file(path, 64);
    if (text) { std::from_chars(text->data(), text->data() + text->size(), out); }
    return out;
}

class Service
{
  public:
    Service(Daemon& daemon, Config config, std::unique_ptr<Ledger> ledger, std::unique_ptr<Backend> other)
        : daemon_(daemon), loop_(daemon.loop()), config_(std::move(config)), policy_(loop_, config_.policy_file),
          ledger_(std::move(ledger)), scope_(loop_), file_(scope_, policy_, ledger_.get()), other_(std::move(other)),
          webhook_(loop_, other_ ? *other_ : file_, ledger_.get()), commands_(policy_, other_ ? nullptr : &file_, ledger_.get()),
          audit_(loop_, ledger_.get(), other_ ? nullptr : &policy_, other_ ? *other_ : file_)
    {
    }

    Task<Result<Done>> run();

  private:
    Result<Done> listen(http::Server& server);
    Task<> connect();
    Task<> publish();
    Task<> watch_ledger();
    Task<> store_cursor(std::uint64_t sequence);
    void serve_commands();
    bus::Client::OutgoingEvent event_of(const Entry& entry) const;

    Daemon& daemon_;
    Loop& loop_;
    Config config_;
    PolicyFile policy_;
    std::unique_ptr<Ledger> ledger_;
    std::unique_ptr<bus::Client> bus_;
    Scope scope_; ///< before what its tasks use
    FileBackend file_;
    std::unique_ptr<Backend> other_; ///< set: it decides, and the file does not
    Webhook webhook_;
    PolicyCommands commands_;
    AuditCommands audit_;
};

Task<Result<Done>> Service::run()
{
    bool created = false;
    if (config_.create_policy && !other_)
    {
        auto written = policy_.create(blank_policy());
        if (!written) { co_return std::move(written).error(); }
        created = *written;
    }
    if (ledger_) { scope_.spawn(ledger_->run()); }
    if (!other_) { co_await file_.begin(created); }

    http::Server server{loop_, limits_of(config_),
                        [this](http::Request request) { return webhook_.answer(std::move(request)); }};
    auto listening = listen(server);
    if (!listening) { co_return std::move(listening).error(); }
    if (!config_.bus_directory.empty())
    {
        bus_ = std::make_unique<bus::Client>(loop_, bus::ClientConfig{config_.bus_directory, "auth"});
        serve_commands();
        scope_.spawn(connect());
        scope_.spawn(publish());
    }
    if (ledger_) { scope_.spawn(watch_ledger()); }
    daemon_.ready();
    log::info("serving", {{"listen", config_.listen},
                          {"port", server.port()},
                          {"backend", config_.backend},
                          {"policy", policy_.path()},
                          {"decisions", ledger_ ? ledger_->sequence() : 0}});
    co_await daemon_.stop_requested();
    co_await server.drain(drain_limit);
    if (bus_) { co_await bus_->disconnect(drain_limit); }
    if (ledger_) { co_await ledger_->finish(); }
    scope_.cancel();
    if (ledger_ && ledger_->damage()) { co_return *ledger_->damage(); }
    log::info("stopped");
    co_return Done{};
}

Result<Done> Service::listen(http::Server& server)
{
    const int passed = sd_listen_fds(0);
    for (int i = 0; i < passed; ++i)
    {
        auto taken = server.listen_fd(SD_LISTEN_FDS_START + i);
        if (!taken) { return taken; }
    }
    return passed > 0 ? Result<Done>{Done{}} : server.listen_tcp(config_.listen, config_.port);
}

/// The webhook answers with or without the bus.
Task<> Service::connect()
{
    bool said = false;
    for (;;)
    {
        auto connected = co_await bus_->connect(connect_limit);
        if (connected)
        {
            log::info("on the bus", {{"directory", config_.bus_directory}});
            co_return;
        }
        if (!said) { log::warn("not on the bus", {{"error", connected.error().message}}); }
        said = true;
        co_await sleep_for(loop_, retry_after);
    }
}

bus::Client::OutgoingEvent Service::event_of(const Entry& entry) const
{
    auto out = entry.kind == "policy" ? bus::Client::make_event(entry.change)
                                      : bus::Client::make_event(schema::AuthDecided{entry.decision});
    out.id = "auth-" + ledger_->identity() + "-" + std::to_string(entry.sequence); // sent twice, it is journalled once
    out.time_ms = entry.time_ms;
    return out;
}

/// Every record becomes an event, also those of a time without a bus and of a process before this one.
Task<> Service::publish()
{
    const std::string cursor_path = config_.ledger_dir + "/published";
    std::uint64_t next = read_cursor(cursor_path) + 1;
    if (next > ledger_->sequence() + 1) { next = 1; } // the ledger is another one
    bool said = false;
    for (;;)
    {
        ledger_->grown().reset();
        auto entries = co_await ledger_->read(next, publish_batch);
        if (!entries)
        {
            log::error("ledger not readable", {{"error", entries.error().message}});
            co_return;
        }
        if (entries->empty())
        {
            co_await ledger_->grown().wait();
            continue;
        }
        for (std::size_t i = 0; i < entries->size();)
        {
            const Entry& entry = (*entries)[i];
            if (entry.kind == "repair")
            {
                ++i;
                continue;
            }
            auto event = event_of(entry);
            auto sent = co_await bus_->publish_raw(std::move(event), publish_limit);
            if (sent) { ++i; }
            else
            {
                if (!said)
                {
                    log::warn("event not published", {{"decision", entry.sequence}, {"error", sent.error().message}});
                }
                co_await sleep_for(loop_, retry_after);
            }
            said = !sent;
        }
        next = entries->back().sequence + 1;
        co_await store_cursor(next - 1);
    }
}

/// Damage that is found while it runs ends the process.
Task<> Service::watch_ledger()
{
    co_await audit_.watch(daemon_, bus_.get());
    daemon_.request_stop();
}

Task<> Service::store_cursor(std::uint64_t sequence)
{
    auto job = [path = config_.ledger_dir + "/published", text = std::to_string(sequence) + "\n"]
    { return state::write_file_atomic(path, text, 0640); };
    auto stored = co_await offload(loop_, job);
    if (!stored) { log::warn("publishing position not stored", {{"error", stored.error().message}}); }
}

void Service::serve_commands()
{
    commands_.serve(*bus_);
    audit_.serve(*bus_);
}

} // namespace

Task<Result<Done>> serve(Daemon& daemon, Config config)
{
    std::unique_ptr<Ledger> ledger;
    if (!config.ledger_dir.empty())
    {
        LedgerOptions options;
        options.directory = config.ledger_dir;
        options.flush = config.ledger_flush;
        options.segment_bytes = config.ledger_segment_kib * 1024;
        auto opened = Ledger::open(daemon.loop(), std::move(options));
        if (!opened) { co_return std::move(opened).error(); }
        ledger = std::move(*opened);
    }
    std::unique_ptr<Backend> other;
    if (config.backend == "chain")
    {
        auto opened = chain::ChainBackend::open(daemon.loop(), config.chain);
        if (!opened) { co_return std::move(opened).error(); }
        (*opened)->begin();
        other = std::move(*opened);
    }
    Service service{daemon, std::move(config), std::move(ledger), std::move(other)};
    co_return co_await service.run();
}

} // namespace dstack::auth
