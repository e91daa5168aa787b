#include "services/auth/service.hpp"
#include "bus/client/client.hpp"
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
    Service(Daemon& daemon, Config config, std::unique_ptr<Ledger> ledger)
        : daemon_(daemon), loop_(daemon.loop()), config_(std::move(config)), policy_(loop_, config_.policy_file),
          ledger_(std::move(ledger)), scope_(loop_), webhook_(scope_, policy_, *ledger_)
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

    Task<Result<schema::AuthAllowApp::Reply>> allow_app(schema::AuthAllowApp request, bus::CallContext context);
    Task<Result<schema::AuthAllowApp::Reply>> revoke_app(schema::AuthRevokeApp request, bus::CallContext context);
    Task<Result<schema::AuthAllowApp::Reply>> allow_image(schema::AuthAllowImage request, bus::CallContext context);
    Task<Result<schema::AuthDecisions::Reply>> decisions(schema::AuthDecisions request, bus::CallContext context);
    Task<Result<schema::AuthAllowApp::Reply>> change(PolicyFile::Edit edit, Record record);

    Daemon& daemon_;
    Loop& loop_;
    Config config_;
    PolicyFile policy_;
    std::unique_ptr<Ledger> ledger_;
    std::unique_ptr<bus::Client> bus_;
    Scope scope_; ///< before what its tasks use
    Webhook webhook_;
};

Task<Result<Done>> Service::run()
{
    bool created = false;
    if (config_.create_policy)
    {
        auto written = policy_.create(blank_policy());
        if (!written) { co_return std::move(written).error(); }
        created = *written;
    }
    scope_.spawn(ledger_->run());
    scope_.spawn(watch_ledger());
    auto snapshot = co_await policy_.current();
    if (created || snapshot->hash != ledger_->last_policy_hash()) { co_await webhook_.note_policy(snapshot, created); }

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
    daemon_.ready();
    log::info("serving", {{"listen", config_.listen},
                          {"port", server.port()},
                          {"policy", policy_.path()},
                          {"decisions", ledger_->sequence()}});
    co_await daemon_.stop_requested();
    co_await server.drain(drain_limit);
    if (bus_) { co_await bus_->disconnect(drain_limit); }
    co_await ledger_->finish();
    scope_.cancel();
    if (ledger_->damage()) { co_return *ledger_->damage(); }
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

/// Says how the ledger fares when that changes; damage ends the process.
Task<> Service::watch_ledger()
{
    std::string told;
    for (;;)
    {
        ledger_->changed().reset();
        const std::string& trouble = ledger_->trouble();
        schema::AuthLedgerChanged now;
        now.state = !trouble.empty() ? "failing" : ledger_->warning().empty() ? "ok" : "low";
        now.reason = trouble.empty() ? ledger_->warning() : trouble;
        now.free_bytes = ledger_->free_bytes();
        now.denied = ledger_->denied();
        if (ledger_->damage()) { daemon_.request_stop(); }
        if (now.state + now.reason != told && (now.state != "ok" || !told.empty()))
        {
            if (now.state == "failing") { log::error("ledger cannot be written: every boot is denied", {{"error", now.reason}}); }
            else if (now.state == "low") { log::warn("ledger needs attention", {{"reason", now.reason}}); }
            else { log::info("ledger is well again"); }
            told = now.state + now.reason;
            if (bus_)
            {
                auto event = bus::Client::make_event(now);
                auto sent = co_await bus_->publish_raw(std::move(event), publish_limit);
                if (!sent) { log::warn("event not published", {{"error", sent.error().message}}); }
                continue;
            }
        }
        co_await ledger_->changed().wait();
    }
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
    using bus::CallContext;
    bus_->serve<schema::AuthAllowApp>([this](schema::AuthAllowApp request, CallContext context)
                                      { return allow_app(std::move(request), std::move(context)); });
    bus_->serve<schema::AuthRevokeApp>([this](schema::AuthRevokeApp request, CallContext context)
                                       { return revoke_app(std::move(request), std::move(context)); });
    bus_->serve<schema::AuthAllowImage>([this](schema::AuthAllowImage request, CallContext context)
                                        { return allow_image(std::move(request), std::move(context)); });
    bus_->serve<schema::AuthDecisions>([this](schema::AuthDecisions request, CallContext context)
                                       { return decisions(std::move(request), std::move(context)); });
}

Record policy_record(std::string change, std::string app_id, std::string compose_hash, const std::string& reason,
                     const bus::CallContext& context)
{
    Record out;
    out.time_ms = unix_ms();
    out.kind = "policy";
    out.change = std::move(change);
    out.app_id = std::move(app_id);
    out.compose_hash = std::move(compose_hash);
    out.reason = reason.substr(0, 1000);
    out.by = context.caller;
    return out;
}

Task<Result<schema::AuthAllowApp::Reply>> Service::allow_app(schema::AuthAllowApp request, bus::CallContext context)
{
    PolicyFile::Edit edit = [app = request.app_id, hash = request.compose_hash](std::string_view text)
    { return auth::allow_app(text, app, hash); };
    Record record = policy_record("allow_app", request.app_id, request.compose_hash, request.reason, context);
    co_return co_await change(std::move(edit), std::move(record));
}

Task<Result<schema::AuthAllowApp::Reply>> Service::revoke_app(schema::AuthRevokeApp request, bus::CallContext context)
{
    PolicyFile::Edit edit = [app = request.app_id, hash = request.compose_hash](std::string_view text)
    { return auth::revoke_app(text, app, hash); };
    Record record = policy_record("revoke_app", request.app_id, request.compose_hash, request.reason, context);
    co_return co_await change(std::move(edit), std::move(record));
}

Task<Result<schema::AuthAllowApp::Reply>> Service::allow_image(schema::AuthAllowImage request, bus::CallContext context)
{
    PolicyFile::Edit edit = [hash = request.os_image_hash](std::string_view text)
    { return auth::allow_image(text, hash); };
    Record record = policy_record(
        "allow_image", "", "", request.os_image_hash + (request.reason.empty() ? "" : ": " + request.reason), context);
    co_return co_await change(std::move(edit), std::move(record));
}

Task<Result<schema::AuthAllowApp::Reply>> Service::change(PolicyFile::Edit edit, Record record)
{
    auto changed = co_await policy_.change(std::move(edit));
    if (!changed) { co_return std::move(changed).error(); }
    if (changed->changed)
    {
        log::info("policy changed",
                  {{"change", record.change}, {"app_id", record.app_id}, {"by", record.by}, {"policy", changed->hash}});
        record.policy_hash = changed->hash;
        webhook_.expect_policy(changed->hash);
        auto written = co_await ledger_->append(record);
        webhook_.expect_policy("");
        // If that failed, the next look at the file finds that the newest record is about another one, and writes that
        // down.
        if (!written)
        {
            co_return std::move(written).error().within("the policy was changed, but that could not be recorded");
        }
    }
    schema::AuthAllowApp::Reply reply;
    reply.changed = changed->changed;
    reply.policy_hash = changed->hash;
    co_return reply;
}

Task<Result<schema::AuthDecisions::Reply>> Service::decisions(schema::AuthDecisions request, bus::CallContext)
{
    if (request.limit < 1 || request.limit > 1000)
    {
        co_return Error{Errc::invalid_argument, "limit: must be in 1..1000", {}, {}};
    }
    schema::AuthDecisions::Reply reply;
    auto found = co_await ledger_->newest(std::move(request.app_id), request.limit);
    if (!found) { co_return std::move(found).error(); }
    reply.decisions = std::move(*found);
    co_return reply;
}

} // namespace

Task<Result<Done>> serve(Daemon& daemon, Config config)
{
    LedgerOptions options;
    options.directory = config.ledger_dir;
    options.flush = config.ledger_flush;
    options.segment_bytes = config.ledger_segment_kib * 1024;
    auto ledger = Ledger::open(daemon.loop(), std::move(options));
    if (!ledger) { co_return std::move(ledger).error(); }
    Service service{daemon, std::move(config), std::move(*ledger)};
    co_return co_await service.run();
}

} // namespace dstack::auth
