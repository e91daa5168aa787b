#pragma once
#include "bus/broker/identity.hpp"
#include "bus/protocol/zmq_watch.hpp"
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <zmq.hpp>

namespace dstack::bus
{

/// The connections below the broker's sockets: where they come from, why their handshakes failed, how to end one.
///
/// ZeroMQ has no call that disconnects one peer of a ROUTER or XPUB, but it tells the descriptor of a connection
/// (ZMQ_SRCFD, and the socket monitor). Shutting that down ends the connection as if the peer had gone. A descriptor may
/// have been closed and used again by then: it is ended only when its peer is the one that is meant, and a peer that is
/// hit by mistake connects again, which clients do not notice but as latency.
class Connections
{
  public:
    struct Origin
    {
        bool tcp = false;
        std::uint32_t uid = 0; ///< ipc
        std::uint32_t pid = 0;
        std::string address;   ///< tcp; empty when the peer was gone before anybody could look
    };
    /// A handshake that failed for a reason of the protocol, not because the peer went away.
    using OnFailed = std::function<void(const Origin&, std::string reason)>;

    Connections(Loop& loop, zmq::context_t& context, OnFailed on_failed);
    Connections(const Connections&) = delete;
    Connections& operator=(const Connections&) = delete;
    ~Connections();

    /// Call before the socket is bound. `name` is unique in the context.
    void watch(zmq::socket_t& socket, const std::string& name);

    /// The descriptor under a message; -1: not known.
    static int descriptor(zmq::message_t& frame);
    /// This connection of `socket` was made with that token.
    void belongs(const zmq::socket_t& socket, int fd, const Identity& identity);
    /// Counts a subscription on a connection of `socket`, and gives how many there are.
    std::size_t subscribed(const zmq::socket_t& socket, int fd);
    /// Ends one connection. False: it is not that peer's any more.
    bool cut(int fd, const Identity& identity);
    /// Ends all connections of a token; how many they were.
    std::size_t cut_token(const std::string& token);
    std::size_t of_token(const std::string& token) const;

    std::uint64_t failed() const { return failed_; }       ///< handshakes that broke the protocol
    std::uint64_t abandoned() const { return abandoned_; } ///< peers that went away, or said nothing, before the handshake's end

  private:
    struct Connection
    {
        Origin origin;
        std::string token;
        std::size_t subscriptions = 0;
    };
    struct Watched
    {
        Watched(zmq::context_t& context, zmq::socket_t& watched) : socket(watched), monitor(context, zmq::socket_type::pair) {}
        zmq::socket_t& socket;
        zmq::socket_t monitor;
        std::unique_ptr<ZmqWatch> watch;
        std::unordered_map<int, Connection> connections;
        bool failed_tcp = false;
        int failure = 0; ///< of the connection that is going to be reported as disconnected next
    };
    void on_monitor(Watched& watched);
    Watched* of(const zmq::socket_t& socket);

    Loop& loop_;
    zmq::context_t& context_;
    OnFailed on_failed_;
    std::vector<std::unique_ptr<Watched>> watched_;
    std::uint64_t failed_ = 0;
    std::uint64_t abandoned_ = 0;
};

} // namespace dstack::bus
