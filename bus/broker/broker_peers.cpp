// The broker's peers: who may connect, what is refused and said about it, and when a connection is ended.
#include "bus/broker/broker.hpp"
#include "bus/broker/token_files.hpp"
#include "shared/crypto/curve25519.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/log/log.hpp"
#include <sys/stat.h>

namespace dstack::bus
{

namespace
{
constexpr int batch_per_turn = 256;
constexpr int live_message_limit = 1024; ///< a peer sends nothing but subscriptions there
constexpr std::size_t small_answer = 2048; ///< smaller ones are bounded by the queue's length alone

void set_raw(zmq::socket_t& socket, int option, const void* value, std::size_t size)
{
    if (zmq_setsockopt(socket.handle(), option, value, size) != 0) { throw zmq::error_t{}; }
}

/// Restores the process' umask whatever happens.
struct Umask
{
    explicit Umask(mode_t mode) : before(::umask(mode)) {}
    ~Umask() { ::umask(before); }
    Umask(const Umask&) = delete;
    Umask& operator=(const Umask&) = delete;
    const mode_t before;
};
} // namespace

Result<Done> Broker::load_access()
{
    auto tokens = load_tokens(state_directory(config_));
    if (!tokens) { return std::move(tokens).error(); }
    tokens_ = std::move(*tokens);
    if (!config_.tcp) { return Done{}; }
    auto key = load_server_key(state_directory(config_));
    if (!key) { return std::move(key).error(); }
    server_secret_ = *key;
    server_key_ = crypto::to_hex(crypto::x25519_public(*key));
    return Done{};
}

void Broker::bind_sockets()
{
    zap_.bind("inproc://zeromq.zap.01");
    zap_watch_ = std::make_unique<ZmqWatch>(loop_, zap_, [this] { on_zap(); });
    connections_.watch(commands_, "commands");
    connections_.watch(live_, "events");
    for (zmq::socket_t* socket : {&commands_, &live_})
    {
        socket->set(zmq::sockopt::zap_domain, std::string{wire::zap_domain});
        socket->set(zmq::sockopt::linger, 0);
        socket->set(zmq::sockopt::handshake_ivl, 5000);
        socket->set(zmq::sockopt::backlog, 1024);
    }
    commands_.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(wire::max_message_bytes));
    commands_.set(zmq::sockopt::router_mandatory, true);
    commands_.set(zmq::sockopt::sndhwm, 10'000);
    commands_.set(zmq::sockopt::rcvhwm, 512); // per peer, and each may be large: the rest waits in the peer's own queue
    live_.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(live_message_limit));
    live_.set(zmq::sockopt::sndhwm, 10'000);
    live_.set(zmq::sockopt::xpub_verboser, true); // each subscription and its end: subscribers are counted
    {
        const Umask private_sockets{0117}; // 0660, from the very first moment
        commands_.bind("ipc://" + config_.directory + "/commands.sock");
        live_.bind("ipc://" + config_.directory + "/events.sock");
    }
    if (!config_.tcp) { return; }
    // A socket's options count for what is bound after they were set: NULL stays with ipc, and tcp has nothing but CURVE.
    for (zmq::socket_t* socket : {&commands_, &live_})
    {
        socket->set(zmq::sockopt::curve_server, true);
        set_raw(*socket, ZMQ_CURVE_SECRETKEY, server_secret_.data(), server_secret_.size());
        socket->set(zmq::sockopt::ipv6, config_.tcp->ipv6());
        socket->set(zmq::sockopt::tcp_keepalive, 1); // a remote peer that vanished without a word ends within two minutes
        socket->set(zmq::sockopt::tcp_keepalive_idle, 60);
        socket->set(zmq::sockopt::tcp_keepalive_intvl, 15);
        socket->set(zmq::sockopt::tcp_keepalive_cnt, 4);
        socket->set(zmq::sockopt::tcp_maxrt, 60'000);
    }
    commands_.bind(config_.tcp->commands());
    live_.bind(config_.tcp->events());
}

// --- the handshake ----------------------------------------------------------------------------------------------

Result<Identity> Broker::identify_ipc(std::string_view address, schema::BusPeerRefused& peer)
{
    auto facts = parse_zap_address(address);
    if (!facts) { return std::move(facts).error(); }
    look_up(*facts);
    peer.uid = facts->uid;
    peer.pid = facts->pid;
    return identify(*facts, config_.identity);
}

Result<Identity> Broker::identify_key(std::string_view address, std::string_view key, schema::BusPeerRefused& peer)
{
    peer.address = address;
    if (key.size() != 32 || address.starts_with("localhost:")) { return Error{Errc::unauthenticated, "CURVE is for tcp, with a key of 32 bytes", {}, {}}; }
    Identity out;
    out.token = crypto::to_hex(crypto::sha256(key)).substr(0, 16);
    out.address = address;
    peer.key = out.token;
    if (const Token* known = tokens_.by_id(out.token)) { peer.token = known->name; }
    auto token = tokens_.check(out.token, unix_ms());
    if (!token) { return std::move(token).error(); }
    // The id is short, for people; what opens the door is the whole key.
    if (!crypto::constant_time_equal(crypto::view((*token)->public_key), crypto::view(crypto::to_hex(crypto::view(key)))))
    {
        return Error{Errc::unauthenticated, "the key is not that of token " + (*token)->name, {}, {}};
    }
    return out;
}

void Broker::on_zap()
{
    // RFC 27: [route, "", "1.0", request id, domain, address, routing id, mechanism, credentials...]
    wire::Frames request;
    for (int i = 0; i < batch_per_turn && wire::receive(zap_, request); ++i)
    {
        if (request.size() < 8) { continue; }
        Result<Identity> identity = Error{Errc::unauthenticated, "only NULL over ipc and CURVE over tcp are known here", {}, {}};
        schema::BusPeerRefused peer;
        const std::string_view mechanism = wire::text(request[7]);
        const std::string_view address = wire::text(request[5]);
        if (mechanism == "NULL") { identity = identify_ipc(address, peer); }
        else if (mechanism == "CURVE" && request.size() == 9) { identity = identify_key(address, wire::text(request[8]), peer); }
        const bool ok = static_cast<bool>(identity);
        if (!ok)
        {
            peer.tried = "connect";
            peer.reason = identity.error().message;
            const std::string_view kind = peer.key.empty() ? "connect" : "token";
            say_refused(kind, std::move(peer));
        }
        wire::Frames answer;
        answer.push_back(std::move(request[0]));
        answer.push_back(wire::frame(""));
        answer.push_back(wire::frame("1.0"));
        answer.push_back(std::move(request[3]));
        answer.push_back(wire::frame(ok ? "200" : "400"));
        answer.push_back(wire::frame(ok ? "OK" : "refused"));
        answer.push_back(wire::frame(ok ? identity->user_id() : std::string{}));
        answer.push_back(wire::frame(""));
        wire::send(zap_, answer);
    }
}

// --- each message -----------------------------------------------------------------------------------------------

bool Broker::admit(Message& message)
{
    Identity& identity = message.identity;
    if (!identity.token.empty())
    {
        connections_.belongs(commands_, message.fd, identity);
        const auto token = tokens_.check(identity.token, unix_ms());
        if (!token)
        {
            schema::BusPeerRefused peer = peer_of(identity);
            peer.tried = message.at(0).substr(0, 16);
            peer.reason = token.error().message;
            say_refused("token", std::move(peer));
            send(message.route, {wire::version, wire::refused, to_string(token.error().code), wire::error_body(token.error())});
            return false;
        }
        identity.role = (*token)->role;
        identity.token_name = (*token)->name;
    }
    if (quotas_.ignored(message.route))
    {
        ++counters_.ignored;
        if (quotas_.end_now(message.route)) { connections_.cut(message.fd, identity); }
        return false;
    }
    return true;
}

void Broker::malformed(const Message& message, std::string_view what)
{
    ++counters_.malformed;
    const Error error{Errc::invalid_argument, std::string{what}, "see bus/README.md", {}};
    refuse(message, "send a message", error);
    const bool last = quotas_.malformed(message.route, unix_ms());
    if (!last)
    {
        send(message.route, {wire::version, wire::refused, to_string(error.code), wire::error_body(error)});
        return;
    }
    const Error over = quota_error("malformed_messages", quotas_.limits().malformed, quotas_.limits().malformed, false, "this connection is ignored, and ended at its next message; mend the client");
    send(message.route, {wire::version, wire::refused, to_string(over.code), wire::error_body(over)});
}

void Broker::note_subscription(zmq::message_t& frame)
{
    const int fd = Connections::descriptor(frame);
    if (fd < 0) { return; } // ZeroMQ's own: the subscriptions of a peer that is gone
    const char* user_id = frame.gets("User-Id");
    auto identity = Identity::from_user_id(user_id != nullptr ? user_id : "");
    if (!identity) { return; }
    if (!identity->token.empty())
    {
        connections_.belongs(live_, fd, *identity);
        if (!tokens_.check(identity->token, unix_ms())) { connections_.cut(fd, *identity); }
    }
    if (wire::text(frame).starts_with('\0')) { return; } // the end of a subscription
    const std::size_t limit = quotas_.limits().subscriptions;
    const std::size_t made = connections_.subscribed(live_, fd);
    if (made <= limit) { return; }
    schema::BusPeerRefused peer = peer_of(*identity);
    peer.tried = "subscribe";
    peer.reason = quota_error("subscriptions", made, limit, false, {}).message;
    say_refused("quota", std::move(peer));
    connections_.cut(fd, *identity);
}

bool Broker::account(const std::string& route, zmq::message_t& answer)
{
    const std::size_t bytes = answer.size();
    if (bytes < small_answer) { return true; }
    const std::shared_ptr<Waiting> waiting = quotas_.waiting(route);
    if (waiting->bytes.load(std::memory_order_relaxed) > 2 * quotas_.limits().waiting_bytes) { return false; }
    struct Held
    {
        std::shared_ptr<Waiting> account;
        std::size_t bytes;
        zmq::message_t frame;
    };
    auto held = std::make_unique<Held>(Held{waiting, bytes, std::move(answer)});
    held->account->add(bytes);
    void* data = held->frame.data();
    const std::size_t size = held->frame.size();
    answer.rebuild(
        data, size,
        [](void*, void* hint)
        {
            const std::unique_ptr<Held> mine{static_cast<Held*>(hint)};
            mine->account->remove(mine->bytes);
        },
        held.release());
    return true;
}

// --- refusals ---------------------------------------------------------------------------------------------------

schema::BusPeerRefused Broker::peer_of(const Identity& identity) const
{
    schema::BusPeerRefused peer;
    peer.uid = identity.uid;
    peer.pid = identity.pid;
    peer.address = identity.address;
    peer.key = identity.token;
    const Token* token = identity.token.empty() ? nullptr : tokens_.by_id(identity.token);
    if (token != nullptr) { peer.token = token->name; }
    return peer;
}

void Broker::say_refused(std::string_view kind, schema::BusPeerRefused peer)
{
    stats_.refused();
    peer.kind = kind;
    std::uint64_t suppressed = 0;
    if (!refusals_.admit(kind, unix_ms(), suppressed))
    {
        last_refused_.insert_or_assign(std::string{kind}, std::move(peer)); // said when nothing more comes
        return;
    }
    peer.suppressed = suppressed;
    log::warn("peer refused", {{"kind", kind}, {"uid", peer.uid}, {"pid", peer.pid}, {"address", peer.address}, {"token", peer.token},
                               {"key", peer.key}, {"tried", peer.tried}, {"reason", peer.reason}, {"suppressed", suppressed}});
    say(std::move(peer));
}

void Broker::refuse(const Message& message, std::string tried, const Error& error)
{
    schema::BusPeerRefused peer = peer_of(message.identity);
    peer.tried = std::move(tried);
    peer.reason = error.message;
    say_refused(error.code == Errc::resource_exhausted ? "quota" : error.code == Errc::invalid_argument ? "garbage" : "access", std::move(peer));
}

void Broker::on_failed_handshake(const Connections::Origin& origin, std::string reason)
{
    schema::BusPeerRefused peer;
    peer.uid = origin.uid;
    peer.pid = origin.pid;
    peer.address = origin.tcp && origin.address.empty() ? "unknown" : origin.address;
    peer.tried = "connect";
    peer.reason = std::move(reason);
    say_refused("handshake", std::move(peer));
}

void Broker::on_peers_tick(std::uint64_t now)
{
    for (const auto& [kind, suppressed] : refusals_.overdue(now))
    {
        schema::BusPeerRefused peer = last_refused_[kind];
        peer.suppressed = suppressed - 1; // without this one itself
        say(std::move(peer));
    }
    for (const Token* token : tokens_.expired_between(expiry_seen_ms_, now))
    {
        schema::BusTokenExpired event;
        event.name = token->name;
        event.role = schema::to_string(token->role);
        event.key = token->id();
        connections_.cut_token(event.key);
        say(std::move(event));
    }
    expiry_seen_ms_ = std::max(expiry_seen_ms_, now);
    quotas_.sweep(now);
}

} // namespace dstack::bus
