#include "services/guest-agent/forwarder.hpp"
#include <array>
#include <cstring>

namespace dstack::guest
{

namespace
{

UvHandle<uv_tcp_t> make_tcp(Loop& loop)
{
    return make_uv<uv_tcp_t>([&](uv_tcp_t* h) { return uv_tcp_init(loop.raw(), h); });
}

uv_stream_t* stream(const UvHandle<uv_tcp_t>& handle) { return reinterpret_cast<uv_stream_t*>(handle.get()); }

Error uv_error(const std::string& what, int code)
{
    return {Errc::unavailable, what + ": " + uv_strerror(code), {}, {}};
}

} // namespace

/// Two sockets, and one buffer per direction: a direction is read again only when its last bytes are written.
struct Forwarder::Pair
{
    struct Direction
    {
        Pair* pair = nullptr;
        UvHandle<uv_tcp_t>* from = nullptr;
        UvHandle<uv_tcp_t>* to = nullptr;
        std::array<char, 32 * 1024> buffer{};
        bool ended = false;
    };
    /// libuv keeps a request until its callback, also after the pair is gone.
    struct Write
    {
        uv_write_t request{};
        Direction* direction;
        std::shared_ptr<bool> alive;
        std::string bytes;
    };
    struct Shutdown
    {
        uv_shutdown_t request{};
    };
    struct Connect
    {
        uv_connect_t request{};
        Pair* pair;
        std::shared_ptr<bool> alive;
    };

    Forwarder* owner = nullptr;
    UvHandle<uv_tcp_t> client, server;
    Direction up{}, down{};
    std::shared_ptr<bool> alive = std::make_shared<bool>(true);

    ~Pair() { *alive = false; }

    void start()
    {
        up = {this, &client, &server, {}, false};
        down = {this, &server, &client, {}, false};
        client->data = &up;
        server->data = &down;
        read(up);
        read(down);
    }

    static void read(Direction& direction)
    {
        uv_read_start(
            stream(*direction.from),
            [](uv_handle_t* h, std::size_t, uv_buf_t* out)
            {
                auto* d = static_cast<Direction*>(h->data);
                *out = uv_buf_init(d->buffer.data(), static_cast<unsigned>(d->buffer.size()));
            },
            [](uv_stream_t* s, ssize_t got, const uv_buf_t*) { on_read(static_cast<Direction*>(s->data), got); });
    }

    static void on_read(Direction* direction, ssize_t got)
    {
        if (got == 0) { return; }
        uv_read_stop(stream(*direction->from));
        if (got < 0) { return end_of(direction, got == UV_EOF); }
        auto* write =
            new Write{{}, direction, direction->pair->alive, {direction->buffer.data(), static_cast<std::size_t>(got)}};
        write->request.data = write;
        uv_buf_t bytes = uv_buf_init(write->bytes.data(), static_cast<unsigned>(write->bytes.size()));
        const int code = uv_write(&write->request, stream(*direction->to), &bytes, 1,
                                  [](uv_write_t* request, int status)
                                  {
                                      const std::unique_ptr<Write> done{static_cast<Write*>(request->data)};
                                      if (!*done->alive) { return; }
                                      if (status != 0) { return done->direction->pair->close(); }
                                      read(*done->direction);
                                  });
        if (code != 0)
        {
            delete write;
            direction->pair->close();
        }
    }

    /// A half-closed connection stays open in the other direction.
    static void end_of(Direction* direction, bool clean)
    {
        Pair* pair = direction->pair;
        direction->ended = true;
        if (!clean || (pair->up.ended && pair->down.ended)) { return pair->close(); }
        auto* shutdown = new Shutdown;
        shutdown->request.data = shutdown;
        if (uv_shutdown(&shutdown->request, stream(*direction->to),
                        [](uv_shutdown_t* request, int) { delete static_cast<Shutdown*>(request->data); }) != 0)
        {
            delete shutdown;
            pair->close();
        }
    }

    void close() { owner->drop(this); }
};

Forwarder::Forwarder(Loop& loop) : loop_(loop) {}
Forwarder::~Forwarder() = default;

void Forwarder::drop(Pair* pair)
{
    pairs_.remove_if([pair](const std::unique_ptr<Pair>& item) { return item.get() == pair; });
}

Result<Done> Forwarder::listen(const std::string& address, std::uint16_t port, std::uint16_t target)
{
    target_ = target;
    listener_ = make_tcp(loop_);
    const std::string what = "forward port " + std::to_string(port);
    sockaddr_in where{};
    if (!listener_ || uv_ip4_addr(address.c_str(), port, &where) != 0) { return uv_error(what, UV_EINVAL); }
    if (const int code = uv_tcp_bind(listener_.get(), reinterpret_cast<const sockaddr*>(&where), 0); code != 0)
    {
        return uv_error(what, code);
    }
    listener_->data = this;
    const int code = uv_listen(stream(listener_), 128,
                               [](uv_stream_t* s, int status)
                               {
                                   if (status == 0) { static_cast<Forwarder*>(s->data)->accept(); }
                               });
    if (code != 0) { return uv_error(what, code); }
    return Done{};
}

void Forwarder::accept()
{
    auto pair = std::make_unique<Pair>();
    pair->owner = this;
    pair->client = make_tcp(loop_);
    pair->server = make_tcp(loop_);
    if (!pair->client || !pair->server || uv_accept(stream(listener_), stream(pair->client)) != 0) { return; }
    if (pairs_.size() >= max_pairs) { return; } // closed again: as good as refused
    uv_tcp_nodelay(pair->client.get(), 1);
    uv_tcp_nodelay(pair->server.get(), 1);
    sockaddr_in target{};
    uv_ip4_addr("127.0.0.1", target_, &target);
    auto* connect = new Pair::Connect{{}, pair.get(), pair->alive};
    connect->request.data = connect;
    const int code =
        uv_tcp_connect(&connect->request, pair->server.get(), reinterpret_cast<const sockaddr*>(&target),
                       [](uv_connect_t* request, int status)
                       {
                           const std::unique_ptr<Pair::Connect> done{static_cast<Pair::Connect*>(request->data)};
                           if (!*done->alive) { return; }
                           if (status != 0) { return done->pair->close(); }
                           done->pair->start();
                       });
    if (code != 0)
    {
        delete connect;
        return;
    }
    pairs_.push_back(std::move(pair));
}

} // namespace dstack::guest
