#pragma once
#include "bus/broker/calls.hpp"
#include "bus/broker/config.hpp"
#include "bus/broker/journal.hpp"
#include "bus/broker/live.hpp"
#include "bus/broker/stats.hpp"
#include "bus/protocol/frames.hpp"
#include "bus/protocol/zmq_watch.hpp"
#include "shared/base/time.hpp"
#include "shared/runtime/daemon.hpp"
#include <deque>
#include <functional>
#include <unordered_map>

namespace dstack::bus
{

/// One registered service.
struct Registration
{
    std::string route; ///< empty: it is down
    std::uint32_t pid = 0;
    std::string version;
    std::uint64_t since_ms = 0;
    std::uint64_t last_seen_ms = 0;
    std::uint64_t restarts = 0; ///< registrations by another process
    UvHandle<uv_poll_t> death; ///< readable when the process has exited
    int pidfd = -1;
};

/// The broker: routes commands, journals and publishes events, knows who is up, enforces the schema's access.
/// bus/README.md is the specification of what it speaks.
class Broker
{
  public:
    Broker(Loop& loop, BrokerConfig config, std::unique_ptr<Journal> journal);
    Broker(const Broker&) = delete;
    Broker& operator=(const Broker&) = delete;
    ~Broker();

    /// Binds the sockets. Call before everything else.
    Result<Done> listen();
    /// What bus.stats answers.
    schema::BusStats::Reply statistics() const;
    /// Told one line whenever the broker begins or ends to refuse events, because its journal fails.
    void on_health(std::function<void(std::string_view)> told) { on_health_ = std::move(told); }
    /// Waits until all that was accepted is durable and answered.
    Task<> drain(milliseconds limit);

  private:
    struct Message // one request, taken apart
    {
        std::string route;
        Identity identity;
        wire::Frames frames; ///< from the verb on
        std::string_view at(std::size_t index) const
        {
            return index < frames.size() ? wire::text(frames[index]) : std::string_view{};
        }
    };

    void on_zap();
    void on_commands();
    void on_subscriptions();
    void dispatch(Message message);

    void on_hello(const Message& message);
    void on_bye(const Message& message);
    void on_ping(const Message& message);
    void on_publish(const Message& message);
    void on_call(const Message& message);
    void on_reply(const Message& message);
    void on_read(const Message& message);

    void send(const std::string& route, std::initializer_list<std::string_view> frames);
    void send_head();

    // events
    template <schema::EventStruct E>
    void say(E event, std::string_view traceparent = {})
    {
        const std::string subject{event.subject()};
        say(E::type, subject, schema::to_json(std::move(event)), traceparent);
    }
    void say(const schema::EventType& type, std::string_view subject, std::string_view data, std::string_view traceparent);
    void publish_one(const Message& message, std::size_t first);
    void unpublished(const std::string& route, std::string_view id, const Error& error);
    void enqueue(JournalEntry entry);
    Task<> commit_events();
    void settle(std::vector<JournalEntry>& batch, const Result<Done>& appended);
    void note_journal(const Result<Done>& appended, std::size_t events);
    void retry_own_events();
    Task<> trim_journal();
    Task<> read_events(std::string route, std::string correlation, JournalQuery query);

    // services
    Registration* registered(const Message& message);
    void service_down(const std::string& service, std::string_view reason);
    void watch_death(Registration& registration);
    Task<> note_service(std::string service);
    void check_silence();

    // calls
    void route_call(Call call);
    bool joins_same(const Call& call);
    Task<> route_keyed_call(Call call);
    void deliver(Call& call);
    void deliver_waiting(const std::string& service);
    void finish(std::uint64_t delivery, std::string_view code, std::string_view body);
    Task<> finish_keyed(Call call, std::string code, std::string body);
    void fail(const std::string& route, std::string_view correlation, const Error& error);
    void fail_call(std::uint64_t delivery, const Error& error);
    void note_finished(const Call& call, std::string_view code, std::string_view body);
    std::string serve_own(const Call& call);
    void refuse(const Message& message, std::string tried, const Error& error);
    void say_refused(std::uint32_t uid, std::uint32_t pid, std::string tried, std::string reason);
    void on_tick();

    Loop& loop_;
    BrokerConfig config_;
    std::unique_ptr<Journal> journal_;
    zmq::context_t context_{1};
    zmq::socket_t zap_{context_, zmq::socket_type::router};
    zmq::socket_t commands_{context_, zmq::socket_type::router};
    zmq::socket_t live_{context_, zmq::socket_type::xpub};
    LiveStream live_stream_;
    std::unique_ptr<ZmqWatch> zap_watch_;
    std::unique_ptr<ZmqWatch> commands_watch_;
    std::unique_ptr<ZmqWatch> live_watch_;
    UvHandle<uv_timer_t> tick_;

    std::unordered_map<std::string, Registration> services_;
    Calls calls_;
    Stats stats_;
    std::vector<JournalEntry> unanswered_; ///< published, not yet on their way to the disk
    std::unordered_map<std::string, std::size_t> publishing_; ///< per route, not yet durable
    std::size_t reads_ = 0;
    bool committing_ = false;
    bool trimming_ = false;
    std::string journal_error_; ///< of the last append; empty: it was well
    std::uint64_t journal_failed_ms_ = 0;
    std::uint64_t journal_refused_ = 0;
    std::vector<JournalEntry> own_refused_;
    std::function<void(std::string_view)> on_health_;
    std::uint64_t trimmed_ms_ = 0;
    Event committed_;
    std::uint64_t refused_at_ms_ = 0;
    std::uint64_t refusals_suppressed_ = 0;
    Scope scope_; ///< last: its tasks use everything above
};

/// The daemon.
Task<Result<Done>> serve(Daemon& daemon, BrokerConfig config);

} // namespace dstack::bus
