#include "services/logs/service.hpp"
#include "bus/client/client.hpp"
#include "bus/schema/logs.hpp"
#include "bus/schema/vm.hpp"
#include "services/logs/api.hpp"
#include "services/logs/collector.hpp"
#include "services/logs/event_server.hpp"
#include "shared/http/server.hpp"
#include "shared/log/log.hpp"
#include "shared/state/files.hpp"
#include <deque>
#include <systemd/sd-daemon.h>

namespace dstack::logs
{

namespace
{

constexpr milliseconds drain_limit{1'000};
constexpr milliseconds connect_limit{5'000};
constexpr milliseconds publish_limit{10'000};
constexpr milliseconds retry_after{500};
constexpr milliseconds cursor_every{2'000};
constexpr std::uint64_t quiet_ms = 10'000; ///< one event per source in this time: the store has every gap
constexpr std::size_t most_waiting_losses = 256;
constexpr unsigned socket_mode = 0660;

class Service
{
  public:
    Service(Daemon& daemon, Config config)
        : daemon_(daemon), loop_(daemon.loop()), config_(std::move(config)), lost_(loop_),
          collector_(loop_, config_, [this](const SourceInfo& info, const Loss& loss) { note_loss(info, loss); }),
          scope_(loop_)
    {
    }
    Task<Result<Done>> run();

  private:
    Result<std::string> listen(http::Server& server) const;
    Task<> connect();
    Task<> watch_vms();
    Task<> heard(bus::EventRecord event);
    Task<> store_cursor();
    Task<> tell_losses();
    void note_loss(const SourceInfo& info, const Loss& loss);
    std::string cursor_file() const { return config_.store_dir + "/cursor"; }

    Daemon& daemon_;
    Loop& loop_;
    Config config_;
    std::unique_ptr<bus::Client> bus_;
    bus::Cursor seen_;
    bus::Cursor stored_;
    std::deque<schema::LogGap> losses_;
    std::map<std::string, std::uint64_t> told_ms_; ///< per source: when the last gap became an event
    Event lost_;
    Collector collector_;
    Scope scope_; ///< last: its tasks use the rest
};

Result<std::string> Service::listen(http::Server& server) const
{
    std::string url;
    const int passed = sd_listen_fds(0); // the service manager listens, also while we restart
    for (int fd = SD_LISTEN_FDS_START; fd < SD_LISTEN_FDS_START + passed; ++fd)
    {
        auto taken = server.listen_fd(fd);
        if (!taken) { return std::move(taken).error(); }
    }
    if (passed > 0) { return config_.socket.empty() ? "passed in" : "unix:" + config_.socket + ":"; }
    if (!config_.listen.empty())
    {
        auto listening = server.listen_tcp(config_.listen, config_.port);
        if (!listening) { return std::move(listening).error(); }
        const bool v6 = config_.listen.find(':') != std::string::npos;
        url = "http://" + (v6 ? "[" + config_.listen + "]" : config_.listen) + ":" + std::to_string(server.port());
    }
    if (!config_.socket.empty())
    {
        auto listening = server.listen_unix(config_.socket, socket_mode);
        if (!listening) { return std::move(listening).error(); }
        url = "unix:" + config_.socket + ":";
    }
    return url;
}

Task<Result<Done>> Service::run()
{
    auto started = co_await collector_.start();
    if (!started) { co_return std::move(started).error(); }
    std::unique_ptr<Api> api;
    const http::Limits limits;
    EventServer events{loop_, config_};
    http::Server server{loop_, limits,
                        [&api, &events](http::Request request)
                        {
                            // An address beside the socket has no token: events are not for whoever reaches it.
                            if (request.peer == "unix" && request.path() == "/events") { return events.answer(std::move(request)); }
                            return api->answer(std::move(request));
                        }};
    auto url = listen(server);
    if (!url) { co_return std::move(url).error(); }
    auto opened = events.open();
    if (!opened) { co_return std::move(opened).error(); }
    api = std::make_unique<Api>(loop_, collector_, *url);
    if (!config_.bus_directory.empty())
    {
        bus_ = std::make_unique<bus::Client>(loop_, bus::ClientConfig{config_.bus_directory, "logs"});
        bus_->serve<schema::LogsQuery>([api = api.get()](schema::LogsQuery query, bus::CallContext)
                                       { return api->query(std::move(query)); });
        events.use(bus_.get());
        scope_.spawn(connect());
    }
    daemon_.ready();
    log::info("serving", {{"url", *url}, {"sources", collector_.sources().size()}, {"events", events.address()}});
    co_await daemon_.stop_requested();
    server.stop_accepting();
    co_await events.drain(drain_limit);
    co_await server.drain(drain_limit);
    if (bus_) { co_await bus_->disconnect(drain_limit); }
    scope_.cancel();
    log::info("stopped");
    co_return Done{};
}

/// Collecting goes on with or without the bus.
Task<> Service::connect()
{
    bool said = false;
    for (;;)
    {
        auto connected = co_await bus_->connect(connect_limit);
        if (connected) { break; }
        if (!said) { log::warn("not on the bus", {{"error", connected.error().message}}); }
        said = true;
        co_await sleep_for(loop_, retry_after);
    }
    log::info("on the bus", {{"directory", config_.bus_directory}});
    scope_.spawn(watch_vms());
    scope_.spawn(store_cursor());
    scope_.spawn(tell_losses());
}

Task<> Service::watch_vms()
{
    bus::From from;
    from.kind = bus::From::Kind::beginning;
    auto load = [path = cursor_file()] { return state::read_file(path, 256); };
    auto text = co_await offload(loop_, load);
    if (text)
    {
        while (text->ends_with('\n')) { text->pop_back(); }
        const auto cursor = bus::cursor_from_string(*text);
        if (cursor)
        {
            from.kind = bus::From::Kind::cursor;
            from.cursor = *cursor;
            seen_ = stored_ = *cursor;
        }
    }
    bus::Filter filter;
    filter.type_prefix = "vm.";
    bus::Subscription events = bus_->subscribe(filter, from);
    for (;;)
    {
        auto item = co_await events.next();
        if (!item)
        {
            log::error("not following the VMs", {{"error", item.error().message}});
            co_return;
        }
        if (auto* event = std::get_if<bus::EventRecord>(&*item))
        {
            const bus::Cursor cursor = event->cursor;
            auto work = heard(std::move(*event));
            co_await work;
            seen_ = cursor;
        }
        else if (const auto* caught_up = std::get_if<bus::CaughtUp>(&*item)) { seen_ = caught_up->cursor; }
        else { co_await collector_.scan(); } // a gap: what was missed shows in the directory
    }
}

Task<> Service::heard(bus::EventRecord event)
{
    SourceInfo info;
    if (event.type == schema::VmCreated::type.name)
    {
        const auto created = schema::from_json<schema::VmCreated>(event.type, event.data);
        if (!created) { co_return; }
        info.id = created->vm_id;
        info.name = created->name;
        info.app_id = created->app_id;
        info.path = created->serial_log;
    }
    else if (event.type == schema::VmStarted::type.name)
    {
        const auto started = schema::from_json<schema::VmStarted>(event.type, event.data);
        if (!started) { co_return; }
        info.id = started->vm_id;
        info.name = started->name;
        info.path = started->serial_log;
    }
    else if (event.type == schema::VmAdopted::type.name)
    {
        const auto adopted = schema::from_json<schema::VmAdopted>(event.type, event.data);
        if (!adopted) { co_return; }
        info.id = adopted->vm_id;
        info.name = adopted->name;
        info.path = adopted->serial_log;
    }
    else if (event.type == schema::VmRemoved::type.name)
    {
        auto forgetting = collector_.forget_vm(event.subject);
        co_await forgetting;
        co_return;
    }
    else { co_return; }
    const std::string id = info.id;
    auto learning = collector_.learn(std::move(info));
    auto learned = co_await learning;
    if (!learned) { log::warn("log not collected", {{"vm_id", id}, {"error", learned.error().message}}); }
}

/// Losing it only means hearing of VMs again that are known.
Task<> Service::store_cursor()
{
    for (;;)
    {
        co_await sleep_for(loop_, cursor_every);
        if (seen_.epoch == stored_.epoch && seen_.sequence == stored_.sequence) { continue; }
        const bus::Cursor now = seen_;
        auto work = [path = cursor_file(), text = bus::to_string(now) + "\n"]
        { return state::write_file_atomic(path, text, 0640); };
        auto stored = co_await offload(loop_, work);
        if (stored) { stored_ = now; }
    }
}

void Service::note_loss(const SourceInfo& info, const Loss& loss)
{
    const std::uint64_t now = unix_ms();
    std::uint64_t& told = told_ms_[directory_name(info)];
    if (now - told < quiet_ms || losses_.size() >= most_waiting_losses) { return; }
    told = now;
    schema::LogGap gap;
    gap.source = info.id;
    gap.from = gap.to = loss.sequence;
    gap.bytes = loss.bytes;
    gap.reason = loss.reason;
    losses_.push_back(std::move(gap));
    lost_.set();
}

Task<> Service::tell_losses()
{
    for (;;)
    {
        co_await lost_.wait();
        lost_.reset();
        while (!losses_.empty())
        {
            schema::LogGap gap = losses_.front();
            losses_.pop_front();
            const std::string source = gap.source;
            auto event = bus::Client::make_event(std::move(gap));
            auto told = co_await bus_->publish_raw(std::move(event), publish_limit);
            if (!told) { log::warn("gap not published", {{"source", source}, {"error", told.error().message}}); }
        }
    }
}

} // namespace

Task<Result<Done>> serve(Daemon& daemon, Config config)
{
    Service service{daemon, std::move(config)};
    co_return co_await service.run();
}

} // namespace dstack::logs
