#include "bus/broker/connections.hpp"
#include "bus/protocol/frames.hpp"
#include <arpa/inet.h>
#include <array>
#include <cstring>
#include <netinet/in.h>
#include <sys/socket.h>

namespace dstack::bus
{

namespace
{
constexpr int batch_per_turn = 1024;
constexpr int monitor_queue = 100'000; ///< a full one would make ZeroMQ's thread wait for ours

std::string ip_text(const sockaddr_storage& address)
{
    std::array<char, INET6_ADDRSTRLEN> text{};
    if (address.ss_family == AF_INET)
    {
        const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
        if (::inet_ntop(AF_INET, &v4.sin_addr, text.data(), text.size()) == nullptr) { return {}; }
    }
    else if (address.ss_family == AF_INET6)
    {
        const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
        if (::inet_ntop(AF_INET6, &v6.sin6_addr, text.data(), text.size()) == nullptr) { return {}; }
    }
    return text.data();
}

/// Nothing when the descriptor is no connected socket (any more).
Connections::Origin origin_of(int fd)
{
    Connections::Origin out;
    sockaddr_storage address{};
    socklen_t length = sizeof address;
    if (::getpeername(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) { return out; }
    if (address.ss_family == AF_UNIX)
    {
        ucred peer{};
        socklen_t size = sizeof peer;
        if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0)
        {
            out.uid = peer.uid;
            out.pid = static_cast<std::uint32_t>(peer.pid);
        }
        return out;
    }
    out.address = ip_text(address);
    return out;
}

std::string why(int failure, bool tcp)
{
    switch (failure)
    {
    case ZMQ_PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: return "its CURVE handshake was not made for this broker's key";
    case ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
        return tcp ? "it does not speak CURVE, and nothing else is accepted over tcp" : "it does not speak NULL, and nothing else is accepted over ipc";
    default: break;
    }
    return "its handshake is no ZMTP (libzmq's error " + std::to_string(failure) + ")";
}
} // namespace

Connections::Connections(Loop& loop, zmq::context_t& context, OnFailed on_failed)
    : loop_(loop), context_(context), on_failed_(std::move(on_failed))
{
}

Connections::~Connections()
{
    for (const auto& watched : watched_)
    {
        watched->watch.reset();
        zmq_socket_monitor(watched->socket.handle(), nullptr, 0);
    }
}

void Connections::watch(zmq::socket_t& socket, const std::string& name)
{
    auto watched = std::make_unique<Watched>(context_, socket);
    const std::string address = "inproc://monitor-" + name;
    zmq_socket_monitor(socket.handle(), address.c_str(),
                       ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL);
    watched->monitor.set(zmq::sockopt::rcvhwm, monitor_queue);
    watched->monitor.connect(address);
    Watched* raw = watched.get();
    watched->watch = std::make_unique<ZmqWatch>(loop_, watched->monitor, [this, raw] { on_monitor(*raw); });
    watched_.push_back(std::move(watched));
}

void Connections::on_monitor(Watched& watched)
{
    wire::Frames frames;
    for (int i = 0; i < batch_per_turn && wire::receive(watched.monitor, frames); ++i)
    {
        if (frames.empty() || frames[0].size() < 6) { continue; }
        std::uint16_t event = 0;
        std::int32_t value = 0;
        std::memcpy(&event, frames[0].data(), sizeof event);
        std::memcpy(&value, static_cast<const char*>(frames[0].data()) + sizeof event, sizeof value);
        if (event == ZMQ_EVENT_ACCEPTED) { watched.connections.insert_or_assign(value, Connection{origin_of(value), {}, 0}); }
        else if (event == ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL) { ++abandoned_; }
        else if (event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL)
        {
            // ZeroMQ's one thread reports the end of the same connection right behind this.
            ++failed_;
            watched.failure = value;
            watched.failed_tcp = frames.size() > 1 && wire::text(frames[1]).starts_with("tcp:");
        }
        else if (event == ZMQ_EVENT_DISCONNECTED)
        {
            const auto found = watched.connections.find(value);
            const int failure = std::exchange(watched.failure, 0);
            Origin origin = found == watched.connections.end() ? Origin{} : found->second.origin;
            origin.tcp = watched.failed_tcp;
            if (found != watched.connections.end()) { watched.connections.erase(found); }
            if (failure != 0) { on_failed_(origin, why(failure, origin.tcp)); }
        }
    }
}

Connections::Watched* Connections::of(const zmq::socket_t& socket)
{
    for (const auto& watched : watched_)
    {
        if (&watched->socket == &socket) { return watched.get(); }
    }
    return nullptr;
}

int Connections::descriptor(zmq::message_t& frame) { return zmq_msg_get(frame.handle(), ZMQ_SRCFD); }

void Connections::belongs(const zmq::socket_t& socket, int fd, const Identity& identity)
{
    Watched* watched = of(socket);
    if (watched == nullptr || fd < 0) { return; }
    Connection& connection = watched->connections[fd];
    connection.origin.address = identity.address;
    connection.token = identity.token;
}

std::size_t Connections::subscribed(const zmq::socket_t& socket, int fd)
{
    Watched* watched = of(socket);
    return watched == nullptr || fd < 0 ? 0 : ++watched->connections[fd].subscriptions;
}

bool Connections::cut(int fd, const Identity& identity)
{
    if (fd < 0) { return false; }
    const Origin now = origin_of(fd);
    const bool same = identity.token.empty() ? now.address.empty() && now.pid != 0 && now.pid == identity.pid : !now.address.empty() && now.address == identity.address;
    return same && ::shutdown(fd, SHUT_RDWR) == 0;
}

std::size_t Connections::cut_token(const std::string& token)
{
    std::size_t count = 0;
    for (const auto& watched : watched_)
    {
        for (const auto& [fd, connection] : watched->connections)
        {
            if (connection.token != token) { continue; }
            Identity identity;
            identity.token = token;
            identity.address = connection.origin.address;
            if (cut(fd, identity)) { ++count; }
        }
    }
    return count;
}

std::size_t Connections::of_token(const std::string& token) const
{
    std::size_t count = 0;
    for (const auto& watched : watched_)
    {
        for (const auto& [fd, connection] : watched->connections) { count += connection.token == token ? 1 : 0; }
    }
    return count;
}

} // namespace dstack::bus
