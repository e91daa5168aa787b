#include "shared/http/client.hpp"
#include "shared/http/parser.hpp"
#include "shared/http/transport.hpp"
#include <charconv>
#include <limits>
#include <map>
#include <netdb.h>
#include <sys/un.h>
#include <vector>

namespace dstack::http
{

namespace
{

struct Target
{
    bool tls = false;
    std::string unix_path{}; ///< set: a unix socket
    std::string host{};      ///< without the brackets of [::1]
    std::string authority{}; ///< as written: the Host field
    std::string port{};
    std::string path{};
};

Error bad_url(std::string_view url, std::string_view why)
{
    Error error{Errc::invalid_argument, {}, {}, {}};
    error.message = std::string{"bad_url: "} + std::string{url} + ": " + std::string{why};
    error.hint = "write http://host:port/path, https://host:port/path or unix:/path/of/socket:/path";
    return error;
}

bool plain(std::string_view text)
{
    for (const char c : text)
    {
        if (static_cast<unsigned char>(c) <= ' ' || c == '\x7f') { return false; }
    }
    return true;
}

Result<Target> parse_url(const std::string& url)
{
    Target target;
    std::string_view rest = url;
    if (!plain(rest)) { return bad_url("(with control characters or spaces)", "not a url"); }
    if (rest.starts_with("unix:"))
    {
        rest.remove_prefix(5);
        const auto colon = rest.find(":/");
        target.unix_path = rest.substr(0, colon);
        target.path = colon == std::string_view::npos ? "/" : rest.substr(colon + 1);
        target.authority = "localhost";
        if (target.unix_path.empty() || target.unix_path.size() >= sizeof(sockaddr_un::sun_path))
        {
            return bad_url(url, "a socket path has 1 to 107 bytes");
        }
        return target;
    }
    if (rest.starts_with("https://"))
    {
        target.tls = true;
        rest.remove_prefix(8);
    }
    else if (rest.starts_with("http://")) { rest.remove_prefix(7); }
    else { return bad_url(url, "unknown scheme"); }
    const auto end = rest.find_first_of("/?#");
    target.authority = rest.substr(0, end);
    target.path = end == std::string_view::npos ? "/" : rest.substr(end, rest.find('#') - end);
    if (target.path.empty() || target.path.front() != '/') { target.path.insert(0, "/"); }
    std::string_view host = target.authority;
    if (host.find('@') != std::string_view::npos) { return bad_url(url, "no user names in urls"); }
    std::string_view port = target.tls ? "443" : "80";
    std::size_t colon = host.rfind(':');
    if (host.starts_with('['))
    {
        const auto bracket = host.find(']');
        if (bracket == std::string_view::npos) { return bad_url(url, "] is missing"); }
        if (colon < bracket) { colon = std::string_view::npos; }
        if (colon != std::string_view::npos) { port = host.substr(colon + 1); }
        host = host.substr(1, bracket - 1);
    }
    else if (colon != std::string_view::npos)
    {
        port = host.substr(colon + 1);
        host = host.substr(0, colon);
    }
    unsigned number = 0;
    const auto parsed = std::from_chars(port.data(), port.data() + port.size(), number);
    if (host.empty() || parsed.ec != std::errc{} || parsed.ptr != port.data() + port.size() || number == 0 || number > 65535)
    {
        return bad_url(url, "a host and a port from 1 to 65535 are needed");
    }
    target.host = host;
    target.port = port;
    return target;
}

Error connect_error(int status)
{
    switch (status)
    {
        case UV_ECONNREFUSED: return {Errc::unavailable, "connection_refused: nobody listens there", {}, {}};
        case UV_ECONNRESET: return {Errc::unavailable, "connection_reset: the peer reset the connection", {}, {}};
        case UV_ENOENT: return {Errc::unavailable, "not_found: there is no such socket", {}, {}};
        case UV_ENETUNREACH:
        case UV_EHOSTUNREACH: return {Errc::unavailable, std::string{"unreachable: "} + uv_strerror(status), {}, {}};
        case UV_ETIMEDOUT: return {Errc::deadline_exceeded, "connect_timeout: the peer does not answer", {}, {}};
        case UV_EACCES:
        case UV_EPERM: return {Errc::permission_denied, std::string{"connect: "} + uv_strerror(status), {}, {}};
        default: return {Errc::unavailable, std::string{"connect: "} + uv_strerror(status), {}, {}};
    }
}

/// A request to libuv that it must be able to finish after we lost interest.
template <class Request>
struct Pending
{
    Request raw{};
    Event* done = nullptr;
    bool finished = false; ///< the callback has run
    int status = 0;
    std::vector<sockaddr_storage> addresses;
};

Task<Result<std::vector<sockaddr_storage>>> resolve(Loop& loop, std::string host, std::string port)
{
    using Lookup = Pending<uv_getaddrinfo_t>;
    auto* lookup = new Lookup;
    Event done{loop};
    lookup->done = &done;
    lookup->raw.data = lookup;
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICSERV;
    const int started = uv_getaddrinfo(
        loop.raw(), &lookup->raw,
        [](uv_getaddrinfo_t* request, int status, addrinfo* list)
        {
            std::unique_ptr<Lookup> self{static_cast<Lookup*>(request->data)};
            if (self->done != nullptr)
            {
                self->finished = true;
                self->status = status;
                for (const addrinfo* one = list; one != nullptr && self->addresses.size() < 8; one = one->ai_next)
                {
                    sockaddr_storage address{};
                    std::copy_n(reinterpret_cast<const char*>(one->ai_addr), one->ai_addrlen,
                                reinterpret_cast<char*>(&address));
                    self->addresses.push_back(address);
                }
                self->done->set();
                static_cast<void>(self.release()); // the waiter's now
            }
            uv_freeaddrinfo(list);
        },
        host.c_str(), port.c_str(), &hints);
    if (started != 0)
    {
        delete lookup;
        Error error{Errc::unavailable, std::string{"name_not_found: "} + uv_strerror(started), {}, {}};
        co_return error;
    }
    struct Forget // a cancelled waiter leaves the lookup to its callback
    {
        Lookup* lookup;
        ~Forget()
        {
            lookup->done = nullptr;
            if (lookup->finished) { delete lookup; }
            else { uv_cancel(reinterpret_cast<uv_req_t*>(&lookup->raw)); }
        }
    } forget{lookup};
    co_await done.wait();
    if (lookup->status != 0)
    {
        Error error{Errc::unavailable, std::string{"name_not_found: "} + uv_strerror(lookup->status), {}, {}};
        co_return error;
    }
    co_return std::move(lookup->addresses);
}

} // namespace

class Client::Trust
{
  public:
    Result<std::shared_ptr<TlsContext>> context(const TlsClientConfig& config, std::chrono::steady_clock::time_point now)
    {
        if (!config.cert_chain_pem.empty()) { return TlsContext::client(config); } // no private keys are kept here
        const std::pair key{config.verify, config.ca_pem};
        const auto known = kept_.find(key);
        if (known != kept_.end() && now - known->second.since < longest) { return known->second.context; }
        auto fresh = TlsContext::client(config);
        if (!fresh) { return fresh; }
        if (kept_.size() >= most) { kept_.clear(); }
        kept_[key] = {*fresh, now};
        return fresh;
    }

  private:
    struct Kept
    {
        std::shared_ptr<TlsContext> context{};
        std::chrono::steady_clock::time_point since{};
    };
    static constexpr std::chrono::hours longest{1};
    static constexpr std::size_t most = 8;
    std::map<std::pair<TlsClientConfig::Verify, std::string>, Kept> kept_;
};

/// One connection and the response on it.
class ClientStream::Impl final : public TransportSink
{
  public:
    Impl(Loop& loop, std::shared_ptr<Client::Trust> trust, std::size_t max_header_bytes, std::size_t max_body_bytes, bool to_head)
        : loop_(loop), trust_(std::move(trust)), changed_(loop), parser_(max_header_bytes, max_body_bytes, to_head)
    {
    }
    Task<Result<Done>> connect(Target target, TlsClientConfig tls);
    Task<Result<Done>> head();
    Task<Result<Done>> whole();
    Task<Result<std::string>> read_some();
    bool send(std::string head, std::string body)
    {
        return transport_->write(head, std::move(body));
    }
    ResponseParser& parser() { return parser_; }
    const std::string& peer_certificate_der() const { return peer_certificate_der_; }
    Loop& loop() { return loop_; }
    /// Why there is no (further) response.
    Error failure() const;

  private:
    void on_data(std::string_view bytes) override;
    void on_end(const Error* error) override;
    void on_drain() override {}
    void on_secured() override
    {
        secured_ = true;
        peer_certificate_der_ = transport_->tls()->peer_certificate_der();
        changed_.set();
    }
    void on_closed() override {}
    Task<Result<Done>> connect_once(Target target, const sockaddr_storage* address);
    Task<Result<Done>> secure(Target target, TlsClientConfig tls);

    Loop& loop_;
    std::shared_ptr<Client::Trust> trust_;
    Event changed_;
    ReadBuffer buffer_;
    ResponseParser parser_;
    std::unique_ptr<Transport> transport_;
    std::string peer_certificate_der_;
    std::optional<Error> error_;
    bool ended_ = false;
    bool secured_ = false;
    bool whole_ = false; ///< the body is kept until its end
};

void ClientStream::Impl::on_data(std::string_view bytes)
{
    parser_.feed(bytes);
    if (parser_.body().size() > 64 * 1024 && !whole_) { transport_->stop_reading(); }
    changed_.set();
}

void ClientStream::Impl::on_end(const Error* error)
{
    ended_ = true;
    if (error != nullptr) { error_ = *error; }
    else { parser_.finish(); }
    changed_.set();
}

Error ClientStream::Impl::failure() const
{
    if (parser_.too_large()) { return {Errc::resource_exhausted, "response_too_large: " + parser_.error_text(), {}, {}}; }
    if (error_) { return *error_; }
    if (ended_ && !parser_.started())
    {
        return {Errc::unavailable, "connection_closed: the peer closed the connection without an answer", {}, {}};
    }
    if (parser_.failed()) { return {Errc::internal, "bad_response: " + parser_.error_text(), {}, {}}; }
    return {Errc::unavailable, "connection_closed: the peer closed the connection", {}, {}};
}

Task<Result<Done>> ClientStream::Impl::connect_once(Target target, const sockaddr_storage* address)
{
    using Connect = Pending<uv_connect_t>;
    const auto kind = address == nullptr ? Transport::Kind::unix_socket : Transport::Kind::tcp;
    transport_ = std::make_unique<Transport>(loop_, kind, *this, buffer_);
    auto* connect = new Connect;
    Event done{loop_};
    connect->done = &done;
    connect->raw.data = connect;
    const auto on_connect = [](uv_connect_t* request, int status)
    {
        std::unique_ptr<Connect> self{static_cast<Connect*>(request->data)};
        if (self->done == nullptr) { return; }
        self->finished = true;
        self->status = status;
        self->done->set();
        static_cast<void>(self.release()); // the waiter's now
    };
    int started = 0;
    if (address == nullptr) { uv_pipe_connect(&connect->raw, transport_->pipe(), target.unix_path.c_str(), on_connect); }
    else
    {
        started = uv_tcp_connect(&connect->raw, transport_->tcp(), reinterpret_cast<const sockaddr*>(address), on_connect);
    }
    if (started != 0)
    {
        delete connect;
        co_return connect_error(started);
    }
    struct Forget // a cancelled waiter closes the socket, and the callback frees the request
    {
        Connect* connect;
        ~Forget()
        {
            connect->done = nullptr;
            if (connect->finished) { delete connect; }
        }
    } forget{connect};
    co_await done.wait();
    if (connect->status != 0) { co_return connect_error(connect->status); }
    if (address != nullptr) { uv_tcp_nodelay(transport_->tcp(), 1); }
    co_return Done{};
}

Task<Result<Done>> ClientStream::Impl::secure(Target target, TlsClientConfig tls)
{
    auto context = trust_->context(tls, loop_.now());
    if (!context) { co_return std::move(context).error(); }
    const std::string name = tls.server_name.empty() ? target.host : tls.server_name;
    const std::string verify_name = tls.verify == TlsClientConfig::Verify::none ? std::string{} : name;
    auto session = TlsSession::client(std::move(*context), name, verify_name);
    if (!session) { co_return std::move(session).error(); }
    transport_->secure(std::move(*session));
    transport_->start_reading();
    while (!secured_ && !ended_)
    {
        changed_.reset();
        co_await changed_.wait();
    }
    if (!secured_) { co_return failure(); }
    co_return Done{};
}

Task<Result<Done>> ClientStream::Impl::connect(Target target, TlsClientConfig tls)
{
    if (!target.unix_path.empty())
    {
        auto connecting = connect_once(target, nullptr);
        auto connected = co_await connecting;
        if (!connected) { co_return std::move(connected).error(); }
    }
    else
    {
        std::vector<sockaddr_storage> addresses(1);
        unsigned number = 0;
        std::from_chars(target.port.data(), target.port.data() + target.port.size(), number);
        const int port = static_cast<int>(number);
        auto* first = &addresses.front();
        if (uv_ip4_addr(target.host.c_str(), port, reinterpret_cast<sockaddr_in*>(first)) != 0 &&
            uv_ip6_addr(target.host.c_str(), port, reinterpret_cast<sockaddr_in6*>(first)) != 0)
        {
            auto lookup = resolve(loop_, target.host, target.port);
            auto found = co_await lookup;
            if (!found) { co_return std::move(found).error(); }
            addresses = std::move(*found);
        }
        Result<Done> connected = Error{Errc::unavailable, "name_not_found: no address", {}, {}};
        for (const sockaddr_storage& address : addresses)
        {
            auto connecting = connect_once(target, &address);
            auto one = co_await connecting;
            connected = std::move(one);
            if (connected) { break; }
        }
        if (!connected) { co_return std::move(connected).error(); }
    }
    if (target.tls)
    {
        auto securing = secure(std::move(target), std::move(tls));
        co_return co_await securing;
    }
    if (!transport_->start_reading()) { co_return connect_error(UV_ECONNRESET); }
    co_return Done{};
}

Task<Result<Done>> ClientStream::Impl::head()
{
    while (!parser_.head_done() && !parser_.failed() && !ended_)
    {
        changed_.reset();
        co_await changed_.wait();
    }
    if (!parser_.head_done() || parser_.failed()) { co_return failure(); }
    co_return Done{};
}

Task<Result<Done>> ClientStream::Impl::whole()
{
    whole_ = true;
    transport_->start_reading();
    while (!parser_.complete() && !parser_.failed() && !ended_)
    {
        changed_.reset();
        co_await changed_.wait();
    }
    if (!parser_.complete()) { co_return failure(); }
    co_return Done{};
}

Task<Result<std::string>> ClientStream::Impl::read_some()
{
    while (parser_.body().empty() && !parser_.complete() && !parser_.failed() && !ended_)
    {
        changed_.reset();
        co_await changed_.wait();
    }
    if (parser_.body().empty() && !parser_.complete()) { co_return failure(); }
    std::string bytes = std::move(parser_.body());
    parser_.body().clear();
    transport_->start_reading();
    co_return bytes;
}

namespace
{

bool is_token(std::string_view text)
{
    static constexpr std::string_view marks = "!#$%&'*+-.^_`|~";
    for (const char c : text)
    {
        const bool alnum = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!alnum && marks.find(c) == std::string_view::npos) { return false; }
    }
    return !text.empty();
}

bool is_value(std::string_view text)
{
    for (const char c : text)
    {
        if ((static_cast<unsigned char>(c) < ' ' && c != '\t') || c == '\x7f') { return false; }
    }
    return true;
}

Result<std::string> request_head(const ClientRequest& request, const Target& target)
{
    const Error bad{Errc::invalid_argument, "bad_request: a method, field name or field value has illegal characters", {}, {}};
    if (!is_token(request.method)) { return bad; }
    std::string head = request.method + " " + target.path + " HTTP/1.1\r\n";
    if (request.headers.find("host") == nullptr) { head.append("Host: ").append(target.authority).append("\r\n"); }
    for (const Header& header : request.headers)
    {
        if (!is_token(header.name) || !is_value(header.value)) { return bad; }
        if (iequals(header.name, "content-length") || iequals(header.name, "connection") ||
            iequals(header.name, "transfer-encoding"))
        {
            continue;
        }
        head.append(header.name).append(": ").append(header.value).append("\r\n");
    }
    if (!request.body.empty() || (request.method != "GET" && request.method != "HEAD"))
    {
        head.append("Content-Length: ").append(std::to_string(request.body.size())).append("\r\n");
    }
    head.append("Connection: close\r\n\r\n");
    return head;
}

/// The class of the failure stays in front: "connection_refused: GET http://127.0.0.1:1/x: nobody listens there".
Error named(Error error, const std::string& url)
{
    const auto colon = error.message.find(": ");
    const std::string where = url.substr(0, url.find('?')); // queries may hold secrets
    if (colon == std::string::npos) { error.message.append(": ").append(where); }
    else { error.message.insert(colon + 2, where + ": "); }
    return error;
}

Task<Result<Done>> exchange(ClientStream::Impl* impl, Target target, ClientRequest request, bool whole)
{
    auto head = request_head(request, target);
    if (!head) { co_return std::move(head).error(); }
    const milliseconds limit = request.connect_timeout;
    auto connecting = impl->connect(std::move(target), std::move(request.tls));
    auto connected = co_await with_timeout(impl->loop(), limit, "connect_timeout", std::move(connecting));
    if (!connected) { co_return std::move(connected).error(); }
    // A refused write may still have an answer to read (413, 431).
    impl->send(std::move(*head), std::move(request.body));
    if (whole)
    {
        auto answer = impl->whole();
        co_return co_await answer;
    }
    auto answer = impl->head();
    co_return co_await answer;
}

/// with_timeout around an exchange that lives as long as its connection.
Task<Result<Done>> timed_exchange(ClientStream::Impl* impl, ClientRequest request, bool whole)
{
    auto target = parse_url(request.url);
    if (!target) { co_return std::move(target).error(); }
    const std::string url = request.url;
    const milliseconds limit = request.timeout;
    auto work = exchange(impl, std::move(*target), std::move(request), whole);
    auto done = co_await with_timeout(impl->loop(), limit, "timeout", std::move(work));
    if (!done) { co_return named(std::move(done).error(), url); }
    co_return Done{};
}

} // namespace

Client::Client(Loop& loop) : loop_(loop), trust_(std::make_shared<Trust>()) {}

Task<Result<ClientResponse>> Client::send(ClientRequest request)
{
    ClientStream::Impl impl{loop_, trust_, request.max_header_bytes, request.max_response_bytes, request.method == "HEAD"};
    auto work = timed_exchange(&impl, std::move(request), true);
    auto done = co_await work;
    if (!done) { co_return std::move(done).error(); }
    ClientResponse response;
    response.status = impl.parser().status();
    response.headers = std::move(impl.parser().headers());
    response.body = std::move(impl.parser().body());
    response.peer_certificate_der = impl.peer_certificate_der();
    co_return response;
}

Task<Result<ClientStream>> Client::open(ClientRequest request)
{
    auto impl = std::make_unique<ClientStream::Impl>(loop_, trust_, request.max_header_bytes,
                                                     std::numeric_limits<std::size_t>::max(), request.method == "HEAD");
    auto work = timed_exchange(impl.get(), std::move(request), false);
    auto done = co_await work;
    if (!done) { co_return std::move(done).error(); }
    ClientStream stream{std::move(impl)};
    co_return stream;
}

ClientStream::ClientStream(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ClientStream::ClientStream(ClientStream&&) noexcept = default;
ClientStream& ClientStream::operator=(ClientStream&&) noexcept = default;
ClientStream::~ClientStream() = default;

int ClientStream::status() const { return impl_->parser().status(); }
const Headers& ClientStream::headers() const { return impl_->parser().headers(); }
const std::string& ClientStream::peer_certificate_der() const { return impl_->peer_certificate_der(); }

Task<Result<std::string>> ClientStream::read(milliseconds limit)
{
    auto reading = impl_->read_some();
    auto bytes = co_await with_timeout(impl_->loop(), limit, "timeout", std::move(reading));
    co_return bytes;
}

} // namespace dstack::http
