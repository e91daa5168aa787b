#pragma once
#include "bus/broker/calls.hpp"
#include "bus/broker/config.hpp"
#include "bus/broker/connections.hpp"
#include "bus/broker/journal.hpp"
#include "bus/broker/live.hpp"
#include "bus/broker/quota.hpp"
#include "bus/broker/tokens.hpp"
#include "bus/broker/stats.hpp"
#include "bus/protocol/frames.hpp"
#include "bus/protocol/zmq_watch.hpp"
#include "bus/schema/bus.hpp"
#include "shared/base/time.hpp"
#include "shared/crypto/bytes.hpp"
#include "shared/runtime/daemon.hpp"
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

/// What peers did that they should not; for whoever shows it.
struct PeerCounters
{
    std::uint64_t malformed = 0; ///< messages that are none
    std::uint64_t ignored = 0;   ///< messages of connections that are ignored
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
        int fd = -1; ///< the connection below; only of one over tcp or one that is ignored
        wire::Line line{{}}; ///< views into the frame that is being handled
        std::string_view at(std::size_t index) const { return line.at(index); }
    };

    // peers: broker_peers.cpp
    Result<Done> load_access();
    void bind_sockets();
    void on_zap();
    Result<Identity> identify_ipc(std::string_view address, schema::BusPeerRefused& peer);
    Result<Identity> identify_key(std::string_view address, std::string_view key, schema::BusPeerRefused& peer);
    /// Has the sender any rights at this moment? Fills in those that a token gives.
    bool admit(Message& message);
    void malformed(const Message& message, std::string_view what);
    void note_subscription(zmq::message_t& frame);
    /// Counts the bytes of an answer until ZeroMQ has let them go. Call right before it is sent; false: do not send it, the peer
    /// has far more waiting than its quota, and takes nothing.
    bool account(const std::string& route, zmq::message_t& answer);
    void refuse(const Message& message, std::string tried, const Error& error);
    void say_refused(std::string_view kind, schema::BusPeerRefused peer);
    schema::BusPeerRefused peer_of(const Identity& identity) const;
    void on_failed_handshake(const Connections::Origin& origin, std::string reason);
    void on_peers_tick(std::uint64_t now);

    // tokens: broker_tokens.cpp
    static bool is_token_command(std::string_view command);
    Task<> serve_token(Call call);
    Task<Result<std::string>> token_answer(Call call);
    Task<Result<std::string>> create_token(Call call);
    Task<Result<std::string>> revoke_token(Call call);
    Task<Result<Done>> change_tokens(Tokens next);
    schema::TokenEntry entry_of(const Token& token) const;
    std::string tcp_address() const;

    void on_commands();
    const Identity* identity_of(const std::string& user_id);
    void on_subscriptions();
    void dispatch(const Message& message);

    void on_hello(const Message& message);
    void on_bye(const Message& message);
    void on_ping(const Message& message);
    void on_publish(const Message& message);
    void on_call(const Message& message);
    void on_reply(const Message& message);
    void on_read(const Message& message);

    void send(const std::string& route, std::initializer_list<std::string_view> fields) { send(route, wire::line(fields)); }
    void send(const std::string& route, zmq::message_t answer);
    void send_head();

    // events
    template <schema::EventStruct E>
    void say(E event, std::string_view traceparent = {})
    {
        const std::string subject{event.subject()};
        say(E::type, subject, schema::to_json(std::move(event)), traceparent);
    }
    void say(const schema::EventType& type, std::string_view subject, std::string_view data, std::string_view traceparent);
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
    /// Marks the calls with a key that are on their way to it: they go out at its next hello.
    void deliver_again(const std::string& service);
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
    void answer_call(const Call& call, std::string_view code, std::string_view body);
    void note_finished(const Call& call, std::string_view code, std::string_view body);
    std::string serve_own(const Call& call);
    static constexpr std::uint64_t busy_tick_ms = 20; ///< while a call waits: how late its deadline may be noticed
    void on_tick();
    void tick_every(std::uint64_t ms);
    void keep_house(std::uint64_t now);

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
    std::unordered_map<std::string, Identity> identities_; ///< by ZeroMQ User-Id
    Calls calls_;
    Stats stats_;
    std::vector<JournalEntry> unanswered_; ///< published, not yet on their way to the disk
    bool committing_ = false;
    bool trimming_ = false;
    std::string journal_error_; ///< of the last append; empty: it was well
    std::uint64_t journal_failed_ms_ = 0;
    std::uint64_t journal_refused_ = 0;
    std::vector<JournalEntry> own_refused_;
    std::function<void(std::string_view)> on_health_;
    std::uint64_t trimmed_ms_ = 0;
    std::uint64_t kept_house_ms_ = 0;

    Connections connections_;
    Quotas quotas_;
    Tokens tokens_;
    AsyncMutex token_lock_;
    crypto::Bytes32 server_secret_{};
    std::string server_key_; ///< public half, hex; empty: no tcp
    RefusalLimiter refusals_;
    std::map<std::string, schema::BusPeerRefused, std::less<>> last_refused_; ///< per kind, the newest that was not said
    PeerCounters counters_;
    std::uint64_t expiry_seen_ms_ = unix_ms(); ///< tokens that ended up to then have been said
    Scope scope_; ///< last: its tasks use everything above
};

/// The daemon.
Task<Result<Done>> serve(Daemon& daemon, BrokerConfig config);

} // namespace dstack::bus
