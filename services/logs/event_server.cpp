#include "services/logs/event_server.hpp"
#include "services/logs/event_page.hpp"
#include "services/logs/event_stream.hpp"
#include "shared/crypto/bytes.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/log/log.hpp"
#include "shared/state/files.hpp"
#include <sys/stat.h>

namespace dstack::logs
{

namespace
{
constexpr std::size_t most_streams = 128;
constexpr std::size_t token_bytes = 32;
constexpr std::size_t shortest_token = 32;

http::Limits limits_of(const Config& config)
{
    http::Limits limits;
    limits.max_connections = most_streams * 2;
    limits.max_body_bytes = 1024;
    limits.max_unsent_bytes = 64 * 1024; // a client that does not read has this much, and what the kernel holds
    limits.write_timeout = config.events_stall;
    return limits;
}

http::Response refusal(int status, std::string text) { return http::text_response(status, std::move(text) + "\n"); }
} // namespace

Result<Done> EventServer::load_token()
{
    const std::string& path = config_.events_token_file;
    struct stat info{};
    if (::stat(path.c_str(), &info) != 0)
    {
        if (errno != ENOENT) { return errno_error("events token " + path, errno); }
        token_ = crypto::to_hex(crypto::random_bytes(token_bytes));
        log::info("made a token for the event stream", {{"file", path}});
        return state::write_file_atomic(path, token_ + "\n", 0600);
    }
    if ((info.st_mode & 077U) != 0)
    {
        return Error{Errc::failed_precondition, "events token " + path + ": others may read it", "chmod 600 " + path + ", after you have put another token in", {}};
    }
    auto text = state::read_file(path, 4096);
    if (!text) { return std::move(text).error().within("events token"); }
    while (!text->empty() && (text->back() == '\n' || text->back() == ' ' || text->back() == '\r')) { text->pop_back(); }
    if (text->size() < shortest_token)
    {
        return Error{Errc::failed_precondition, "events token " + path + ": shorter than " + std::to_string(shortest_token) + " characters",
                     "remove the file: a new one is made", {}};
    }
    token_ = std::move(*text);
    return Done{};
}

Result<Done> EventServer::open()
{
    if (config_.events_listen.empty()) { return Done{}; }
    auto loaded = load_token();
    if (!loaded) { return loaded; }
    server_ = std::make_unique<http::Server>(loop_, limits_of(config_), [this](http::Request request) { return answer_stranger(std::move(request)); });
    return server_->listen_tcp(config_.events_listen, config_.events_port);
}

std::string EventServer::address() const
{
    if (!server_) { return {}; }
    const bool v6 = config_.events_listen.find(':') != std::string::npos;
    return (v6 ? "[" + config_.events_listen + "]" : config_.events_listen) + ":" + std::to_string(server_->port());
}

namespace
{
http::Response page()
{
    http::Response response;
    response.headers.add("Content-Type", "text/html; charset=utf-8");
    response.headers.add("Content-Security-Policy",
                         "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; frame-ancestors 'none'");
    response.headers.add("Referrer-Policy", "no-referrer");
    response.headers.add("X-Content-Type-Options", "nosniff");
    response.body = event_page;
    return response;
}
} // namespace

Task<http::Response> EventServer::answer_stranger(http::Request request)
{
    if (request.path() == "/" && (request.method == "GET" || request.method == "HEAD")) { co_return page(); }
    if (!token_matches(presented_token(request), token_))
    {
        http::Response response = refusal(401, "a bearer token is needed: the content of the events token file");
        response.headers.add("WWW-Authenticate", "Bearer realm=\"dstack events\"");
        co_return response;
    }
    co_return co_await answer(std::move(request));
}

Task<http::Response> EventServer::answer(http::Request request)
{
    if (request.path() != "/events") { co_return refusal(404, "there is only /events"); }
    if (request.method != "GET") { co_return refusal(405, "only GET"); }
    auto query = parse_event_query(request);
    if (!query) { co_return refusal(400, query.error().message); }
    if (bus_ == nullptr) { co_return refusal(503, "this service is not on a bus"); }
    if (streams_ >= most_streams) { co_return refusal(503, "too many streams are open"); }
    http::Response response;
    response.headers.add("Content-Type", "text/event-stream");
    response.headers.add("Cache-Control", "no-store");
    response.headers.add("X-Content-Type-Options", "nosniff");
    response.headers.add("X-Accel-Buffering", "no");
    response.stream = [this, wanted = std::move(*query)](http::BodyWriter& out) { return follow(wanted.filter, wanted.from, &out); };
    co_return response;
}

Task<Result<Done>> EventServer::follow(bus::Filter filter, bus::From from, http::BodyWriter* out)
{
    struct Count // also when the peer goes away and this is destroyed
    {
        std::size_t& streams;
        explicit Count(std::size_t& s) : streams(s) { log::info("event stream begun", {{"streams", ++streams}}); }
        ~Count() { log::info("event stream ended", {{"streams", --streams}}); }
    } count{streams_};
    const std::string greeting{sse_greeting};
    auto greeted = co_await out->write(greeting);
    if (!greeted) { co_return greeted; }
    bus::Subscription events = bus_->subscribe(std::move(filter), from);
    for (;;)
    {
        auto next = events.next();
        auto item = co_await with_timeout(loop_, config_.events_heartbeat, "events", std::move(next));
        if (!item && item.error().code != Errc::deadline_exceeded) { co_return std::move(item).error(); }
        std::string block = item ? sse_block(*item) : sse_heartbeat(events.position());
        auto written = co_await out->write(std::move(block));
        if (!written) { co_return written; }
    }
}

Task<> EventServer::drain(milliseconds limit)
{
    if (server_) { co_await server_->drain(limit); }
}

} // namespace dstack::logs
