#include "shared/http/server.hpp"
#include "shared/http/connection.hpp"
#include <arpa/inet.h>
#include <array>
#include <list>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <vector>

namespace dstack::http
{

namespace
{
constexpr int backlog = 511;

struct Listener
{
    Server::Impl* server = nullptr;
    Transport::Kind kind = Transport::Kind::tcp;
    UvHandle<uv_tcp_t> tcp;
    UvHandle<uv_pipe_t> pipe;
    uv_stream_t* stream()
    {
        return tcp ? reinterpret_cast<uv_stream_t*>(tcp.get()) : reinterpret_cast<uv_stream_t*>(pipe.get());
    }
};

std::string address_text(const sockaddr_storage& address)
{
    std::array<char, INET6_ADDRSTRLEN> text{};
    if (address.ss_family == AF_INET)
    {
        const auto* v4 = reinterpret_cast<const sockaddr_in*>(&address);
        inet_ntop(AF_INET, &v4->sin_addr, text.data(), text.size());
        return std::string{text.data()} + ":" + std::to_string(ntohs(v4->sin_port));
    }
    if (address.ss_family == AF_INET6)
    {
        const auto* v6 = reinterpret_cast<const sockaddr_in6*>(&address);
        inet_ntop(AF_INET6, &v6->sin6_addr, text.data(), text.size());
        return "[" + std::string{text.data()} + "]:" + std::to_string(ntohs(v6->sin6_port));
    }
    return "unix";
}

/// A socket file without a listener stays behind after a crash; one with a listener is somebody's service.
Result<Done> remove_dead_socket(const std::string& path)
{
    struct stat info{};
    if (lstat(path.c_str(), &info) != 0) { return Done{}; }
    if (!S_ISSOCK(info.st_mode))
    {
        return Error{Errc::already_exists, "listen " + path + ": a file that is no socket is in the way", "remove it", {}};
    }
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    const int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (probe < 0) { return errno_error("listen " + path, errno); }
    const int connected = connect(probe, reinterpret_cast<const sockaddr*>(&address), sizeof address);
    const int why = errno;
    close(probe);
    if (connected == 0 || why == EAGAIN)
    {
        return Error{Errc::already_exists, "listen " + path + ": another process listens there", "stop it first", {}};
    }
    if (why == ECONNREFUSED && unlink(path.c_str()) != 0) { return errno_error("remove " + path, errno); }
    return Done{};
}
} // namespace

class Server::Impl
{
  public:
    Impl(Loop& loop, Limits limits, Handler handler)
        : shared_(loop, limits, std::move(handler)), all_gone_(loop)
    {
        shared_.on_gone = [this](Connection& connection) { forget(connection); };
        all_gone_.set();
        sweep_ = make_uv<uv_timer_t>([&](uv_timer_t* h) { return uv_timer_init(loop.raw(), h); });
        sweep_->data = this;
        milliseconds shortest = limits.idle_timeout;
        for (const auto limit : {limits.header_timeout, limits.body_timeout, limits.handler_timeout, limits.write_timeout})
        {
            shortest = std::min(shortest, limit);
        }
        sweep_every_ = std::clamp(shortest / 4, milliseconds{2}, milliseconds{500});
    }

    Result<Done> listen(std::unique_ptr<Listener> listener, const std::string& name);
    void accept(Listener& listener);
    void stop_accepting();
    void close_all()
    {
        for (auto& connection : connections_) { connection->close(); }
    }

    ServerShared shared_;
    std::shared_ptr<TlsContext> tls_;
    std::vector<std::unique_ptr<Listener>> listeners_;
    std::list<std::unique_ptr<Connection>> connections_;
    Event all_gone_;
    std::uint16_t port_ = 0;

  private:
    bool make_room();
    void forget(Connection& connection);
    void sweep();
    UvHandle<uv_timer_t> sweep_;
    milliseconds sweep_every_{};
};

Result<Done> Server::Impl::listen(std::unique_ptr<Listener> listener, const std::string& name)
{
    listener->server = this;
    uv_stream_t* stream = listener->stream();
    stream->data = listener.get();
    const int status = uv_listen(stream, backlog,
                                 [](uv_stream_t* s, int result)
                                 {
                                     auto* self = static_cast<Listener*>(s->data);
                                     if (result == 0) { self->server->accept(*self); }
                                 });
    if (status != 0)
    {
        Error error = errno_error("listen " + name, -status);
        if (status == UV_EADDRINUSE)
        {
            error.code = Errc::already_exists;
            error.hint = "another process has this address; stop it or choose another";
        }
        return error;
    }
    listeners_.push_back(std::move(listener));
    return Done{};
}

void Server::Impl::accept(Listener& listener)
{
    auto connection = std::make_unique<Connection>(shared_, listener.kind);
    Transport& transport = connection->transport();
    const bool accepted = uv_accept(listener.stream(), transport.stream()) == 0;
    const bool room = connections_.size() < shared_.limits.max_connections || make_room();
    connections_.push_front(std::move(connection));
    Connection& self = *connections_.front();
    self.place = connections_.begin();
    all_gone_.reset();
    if (connections_.size() == 1)
    {
        uv_timer_start(
            sweep_.get(), [](uv_timer_t* timer) { static_cast<Impl*>(timer->data)->sweep(); },
            static_cast<std::uint64_t>(sweep_every_.count()), static_cast<std::uint64_t>(sweep_every_.count()));
    }
    if (!accepted)
    {
        self.close();
        return;
    }
    if (!room)
    {
        if (tls_) { self.close(); }
        else { self.turn_away(); }
        return;
    }
    std::string peer = "unix";
    if (listener.kind == Transport::Kind::tcp)
    {
        uv_tcp_nodelay(transport.tcp(), 1);
        sockaddr_storage address{};
        int size = sizeof address;
        uv_tcp_getpeername(transport.tcp(), reinterpret_cast<sockaddr*>(&address), &size);
        peer = address_text(address);
    }
    self.start(std::move(peer), tls_);
}

/// Closes the connection that has waited longest without a request in work: clients that only hold connections open
/// lose theirs first.
bool Server::Impl::make_room()
{
    Connection* oldest = nullptr;
    for (auto& connection : connections_)
    {
        switch (connection->phase())
        {
            case Connection::Phase::closed: return connections_.size() <= shared_.limits.max_connections + backlog;
            case Connection::Phase::handling:
            case Connection::Phase::streaming: break;
            case Connection::Phase::handshake:
            case Connection::Phase::idle:
            case Connection::Phase::head:
            case Connection::Phase::body:
            case Connection::Phase::lingering:
                if (oldest == nullptr || connection->since() <= oldest->since()) { oldest = connection.get(); }
                break;
        }
    }
    if (oldest == nullptr) { return false; }
    oldest->close();
    return true;
}

void Server::Impl::forget(Connection& connection)
{
    connections_.erase(connection.place);
    if (connections_.empty())
    {
        uv_timer_stop(sweep_.get());
        all_gone_.set();
    }
}

void Server::Impl::sweep()
{
    const std::uint64_t now = uv_now(shared_.loop.raw());
    for (auto& connection : connections_) { connection->check_deadline(now); }
}

void Server::Impl::stop_accepting()
{
    listeners_.clear();
    shared_.draining = true;
    for (auto& connection : connections_) { connection->wind_down(); }
}

Server::Server(Loop& loop, Limits limits, Handler handler)
    : impl_(std::make_unique<Impl>(loop, limits, std::move(handler)))
{
}

Server::~Server() = default;

void Server::plan_body(PlanBody plan) { impl_->shared_.plan = std::move(plan); }

Result<Done> Server::listen_tcp(const std::string& address, std::uint16_t port)
{
    const std::string name = address + ":" + std::to_string(port);
    sockaddr_storage where{};
    if (uv_ip4_addr(address.c_str(), port, reinterpret_cast<sockaddr_in*>(&where)) != 0 &&
        uv_ip6_addr(address.c_str(), port, reinterpret_cast<sockaddr_in6*>(&where)) != 0)
    {
        return Error{Errc::invalid_argument, "listen " + name + ": not an ip address", "write one like 127.0.0.1", {}};
    }
    auto listener = std::make_unique<Listener>();
    listener->tcp = make_uv<uv_tcp_t>([&](uv_tcp_t* h) { return uv_tcp_init(impl_->shared_.loop.raw(), h); });
    const int bound = uv_tcp_bind(listener->tcp.get(), reinterpret_cast<const sockaddr*>(&where), 0);
    if (bound != 0) { return errno_error("bind " + name, -bound); }
    uv_tcp_t* tcp = listener->tcp.get();
    auto listening = impl_->listen(std::move(listener), name);
    if (listening && impl_->port_ == 0)
    {
        int size = sizeof where;
        uv_tcp_getsockname(tcp, reinterpret_cast<sockaddr*>(&where), &size);
        impl_->port_ = ntohs(where.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6*>(&where)->sin6_port
                                                         : reinterpret_cast<const sockaddr_in*>(&where)->sin_port);
    }
    return listening;
}

Result<Done> Server::listen_unix(const std::string& path, unsigned mode)
{
    if (path.empty() || path.size() >= sizeof(sockaddr_un::sun_path))
    {
        return Error{Errc::invalid_argument, "listen " + path + ": a socket path has 1 to 107 bytes", "use a shorter path", {}};
    }
    if (auto removed = remove_dead_socket(path); !removed) { return removed; }
    auto listener = std::make_unique<Listener>();
    listener->kind = Transport::Kind::unix_socket;
    listener->pipe = make_uv<uv_pipe_t>([&](uv_pipe_t* h) { return uv_pipe_init(impl_->shared_.loop.raw(), h, 0); });
    const int bound = uv_pipe_bind(listener->pipe.get(), path.c_str());
    if (bound != 0) { return errno_error("bind " + path, -bound); }
    // Nobody gets in before `listen`, so there is no moment with the wrong mode.
    if (chmod(path.c_str(), static_cast<mode_t>(mode)) != 0) { return errno_error("chmod " + path, errno); }
    return impl_->listen(std::move(listener), path);
}

Result<Done> Server::listen_fd(int fd)
{
    const std::string name = "fd " + std::to_string(fd);
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) { return errno_error("listen " + name, errno); }
    auto listener = std::make_unique<Listener>();
    uv_loop_t* loop = impl_->shared_.loop.raw();
    int opened = UV_EINVAL;
    if (address.ss_family == AF_UNIX)
    {
        listener->kind = Transport::Kind::unix_socket;
        listener->pipe = make_uv<uv_pipe_t>([&](uv_pipe_t* h) { return uv_pipe_init(loop, h, 0); });
        opened = uv_pipe_open(listener->pipe.get(), fd);
    }
    else
    {
        listener->tcp = make_uv<uv_tcp_t>([&](uv_tcp_t* h) { return uv_tcp_init(loop, h); });
        opened = uv_tcp_open(listener->tcp.get(), fd);
        if (impl_->port_ == 0)
        {
            impl_->port_ = ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6*>(&address)->sin6_port
                                                               : reinterpret_cast<const sockaddr_in*>(&address)->sin_port);
        }
    }
    if (opened != 0) { return errno_error("listen " + name, -opened); }
    return impl_->listen(std::move(listener), name);
}

Result<Done> Server::use_tls(const TlsServerConfig& config)
{
    auto context = TlsContext::server(config);
    if (!context) { return std::move(context).error(); }
    impl_->tls_ = std::move(*context);
    return Done{};
}

std::uint16_t Server::port() const { return impl_->port_; }

std::size_t Server::connections() const { return impl_->connections_.size(); }

void Server::stop_accepting() { impl_->stop_accepting(); }

namespace
{
Task<Result<Done>> set(Event& event)
{
    co_await event.wait();
    co_return Done{};
}
} // namespace

Task<> Server::drain(milliseconds limit)
{
    impl_->stop_accepting();
    auto gone = set(impl_->all_gone_);
    auto in_time = co_await with_timeout(impl_->shared_.loop, limit, "drain", std::move(gone));
    if (!in_time) { impl_->close_all(); }
}

} // namespace dstack::http
