#include "shared/http/server.hpp"
#include "tests/catch.hpp"
#include "tests/unit/http/raw_client.hpp"
#include <atomic>
#include <filesystem>
#include <sys/stat.h>
#include <vector>

using namespace dstack;
using namespace std::string_literals;
using http::Limits;
using http::Request;
using http::Response;

namespace
{

/// What the test's handlers share with the test.
struct World
{
    explicit World(Loop& l) : loop(l), started(l) {}
    Loop& loop;
    Event started;
    std::atomic<int> alive = 0; ///< handlers that have begun and are not destroyed
    std::atomic<int> completed = 0;
    std::atomic<std::size_t> streamed = 0;
    std::string log;
};

struct Alive
{
    World* world;
    explicit Alive(World* w) : world(w) { ++world->alive; }
    Alive(const Alive&) = delete;
    Alive& operator=(const Alive&) = delete;
    ~Alive() { --world->alive; }
};

Task<Result<Done>> stream_pieces(http::BodyWriter* out, std::vector<std::string> pieces)
{
    for (const std::string& piece : pieces)
    {
        auto writing = out->write(piece);
        auto written = co_await writing;
        if (!written) { co_return std::move(written).error(); }
    }
    co_return Done{};
}

Task<Result<Done>> stream_then_fail(http::BodyWriter* out)
{
    auto writing = out->write("part");
    auto written = co_await writing;
    static_cast<void>(written);
    co_return Error{Errc::internal, "lost the source", {}, {}};
}

Task<Result<Done>> stream_for_ever(http::BodyWriter* out, World* world)
{
    const Alive alive{world};
    const std::string piece(64 * 1024, 'x');
    while (true)
    {
        auto writing = out->write(piece);
        auto written = co_await writing;
        if (!written) { co_return std::move(written).error(); }
        world->streamed += piece.size();
        co_await next_turn(world->loop);
    }
}

Task<Result<Done>> stream_silence(http::BodyWriter* out, World* world)
{
    const Alive alive{world};
    auto writing = out->write("first\n");
    auto written = co_await writing;
    static_cast<void>(written);
    Event never{world->loop};
    co_await never.wait();
    co_return Done{};
}

Task<Response> count_body(Request request, World* world)
{
    const Alive alive{world};
    std::size_t total = 0;
    std::size_t reads = 0;
    while (true)
    {
        auto reading = request.stream->read();
        auto bytes = co_await reading;
        if (!bytes)
        {
            world->log += bytes.error().message;
            co_return http::text_response(bytes.error().code == Errc::resource_exhausted ? 413 : 400, bytes.error().message);
        }
        if (bytes->empty()) { break; }
        total += bytes->size();
        ++reads;
    }
    ++world->completed;
    co_return http::text_response(200, std::to_string(total) + (reads > 1 ? " in pieces" : " at once"));
}

Task<Response> answer_slowly(World* world, milliseconds delay)
{
    const Alive alive{world};
    world->started.set();
    co_await sleep_for(world->loop, delay);
    ++world->completed;
    co_return http::text_response(200, "slow");
}

Task<Response> answer(Request request, World* world)
{
    const std::string path{request.path()};
    Response response;
    response.headers.add("X", "1");
    if (path == "/echo") { response.body = request.method + " " + request.target + " " + request.body; }
    else if (path == "/big") { response.body.assign(1'000'000, 'b'); }
    else if (path == "/none") { response.status = 204; }
    else if (path == "/split") { response.headers.add("Bad", "a\r\nInjected: yes"); }
    else if (path == "/headers")
    {
        for (const auto& header : request.headers) { response.body += header.name + "=" + header.value + ";"; }
    }
    else if (path == "/peer") { response.body = request.peer; }
    else if (path == "/slow" || path == "/slower")
    {
        auto task = answer_slowly(world, path == "/slow" ? milliseconds{20} : milliseconds{60'000});
        co_return co_await task;
    }
    else if (path == "/count")
    {
        auto task = count_body(std::move(request), world);
        co_return co_await task;
    }
    else if (path == "/chunks")
    {
        response.stream = [](http::BodyWriter& out) { return stream_pieces(&out, {"hello ", "", "world"}); };
    }
    else if (path == "/broken") { response.stream = [](http::BodyWriter& out) { return stream_then_fail(&out); }; }
    else if (path == "/forever") { response.stream = [world](http::BodyWriter& out) { return stream_for_ever(&out, world); }; }
    else if (path == "/silence") { response.stream = [world](http::BodyWriter& out) { return stream_silence(&out, world); }; }
    else { response.status = 404; }
    co_return response;
}

http::BodyPlan plan(const Request& head)
{
    if (head.path() == "/count") { return {1'000'000, true}; }
    return {64 * 1024, false};
}

using Script = std::function<void(std::uint16_t port)>;

Task<> serve_script(Loop& loop, Limits limits, Script script, World* world)
{
    const http::Handler handler = [world](Request request) { return answer(std::move(request), world); };
    http::Server server{loop, limits, handler};
    server.plan_body(plan);
    auto listening = server.listen_tcp("127.0.0.1", 0);
    if (!listening) { throw std::runtime_error(listening.error().message); }
    const std::uint16_t port = server.port();
    auto work = [script, port]
    {
        script(port);
        return true;
    };
    co_await offload(loop, work);
    const milliseconds limit{5'000};
    co_await server.drain(limit);
    if (server.connections() != 0) { world->log += "connections left"; }
}

/// Runs `script` (on another thread, blocking) against a server with the test's routes.
std::string with_server(const Limits& limits, const Script& script)
{
    Loop loop;
    World world{loop};
    loop.run(serve_script(loop, limits, script, &world));
    CHECK(world.alive == 0);
    return world.log;
}

std::string ask(std::uint16_t port, std::string_view bytes)
{
    RawClient client{port};
    client.send(bytes);
    client.half_close();
    return undated(client.read_all());
}

std::string ok(const std::string& body, const std::string& more = "")
{
    return "HTTP/1.1 200 OK\r\nX: 1\r\nContent-Length: " + std::to_string(body.size()) + "\r\n" + more + "\r\n" + body;
}

std::string refused(const std::string& status, const std::string& text)
{
    return "HTTP/1.1 " + status + "\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: " +
           std::to_string(text.size() + 1) + "\r\nConnection: close\r\n\r\n" + text + "\n";
}

const std::string host = "Host: a\r\n";

} // namespace

TEST_CASE("requests are answered byte for byte")
{
    struct Case
    {
        std::string name;
        std::string request;
        std::string response;
    };
    const std::string chunked = "HTTP/1.1 200 OK\r\nX: 1\r\nTransfer-Encoding: chunked\r\n";
    const std::vector<Case> cases = {
        {"plain get", "GET /echo HTTP/1.1\r\n" + host + "\r\n", ok("GET /echo ")},
        {"query", "GET /echo?a=1 HTTP/1.1\r\n" + host + "\r\n", ok("GET /echo?a=1 ")},
        {"absolute target", "GET http://a:1/echo?x HTTP/1.1\r\n" + host + "\r\n", ok("GET /echo?x ")},
        {"post with length", "POST /echo HTTP/1.1\r\n" + host + "Content-Length: 3\r\n\r\nabc", ok("POST /echo abc")},
        {"post in chunks",
         "POST /echo HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nTr: 1\r\n\r\n",
         ok("POST /echo abcde")},
        {"field values are trimmed, empty ones stay", "GET /headers HTTP/1.1\r\nHost:  a \r\nE:\r\nF: x  y \t\r\n\r\n",
         ok("Host=a;E=;F=x  y;")},
        {"head has the length and no body", "HEAD /echo HTTP/1.1\r\n" + host + "\r\n",
         "HTTP/1.1 200 OK\r\nX: 1\r\nContent-Length: 11\r\n\r\n"},
        {"204 has no length", "GET /none HTTP/1.1\r\n" + host + "\r\n", "HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n"},
        {"connection close", "GET /echo HTTP/1.1\r\n" + host + "Connection: close\r\n\r\n",
         ok("GET /echo ", "Connection: close\r\n")},
        {"http/1.0 closes", "GET /echo HTTP/1.0\r\n\r\n", ok("GET /echo ", "Connection: close\r\n")},
        {"http/1.0 keep-alive", "GET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
         ok("GET /echo ", "Connection: keep-alive\r\n")},
        {"upgrade is ignored", "GET /echo HTTP/1.1\r\n" + host + "Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n", ok("GET /echo ")},
        {"pipelined in order", "GET /echo?1 HTTP/1.1\r\n" + host + "\r\nGET /slow HTTP/1.1\r\n" + host +
                                   "\r\nPOST /echo?2 HTTP/1.1\r\n" + host + "Content-Length: 1\r\n\r\nxGET /echo?3 HTTP/1.1\r\n" +
                                   host + "\r\n",
         ok("GET /echo?1 ") +
             "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 4\r\n\r\nslow" +
             ok("POST /echo?2 x") + ok("GET /echo?3 ")},
        {"nothing is served after close",
         "GET /echo HTTP/1.1\r\n" + host + "Connection: close\r\n\r\nGET /echo HTTP/1.1\r\n" + host + "\r\n",
         ok("GET /echo ", "Connection: close\r\n")},
        {"empty lines before a request", "\r\n\r\nGET /echo HTTP/1.1\r\n" + host + "\r\n", ok("GET /echo ")},
        {"chunked response", "GET /chunks HTTP/1.1\r\n" + host + "\r\n",
         chunked + "\r\n6\r\nhello \r\n5\r\nworld\r\n0\r\n\r\n"},
        {"chunked, then the next", "GET /chunks HTTP/1.1\r\n" + host + "\r\nGET /echo HTTP/1.1\r\n" + host + "\r\n",
         chunked + "\r\n6\r\nhello \r\n5\r\nworld\r\n0\r\n\r\n" + ok("GET /echo ")},
        {"streamed to http/1.0", "GET /chunks HTTP/1.0\r\n\r\n",
         "HTTP/1.1 200 OK\r\nX: 1\r\nConnection: close\r\n\r\nhello world"},
        {"head of a stream", "HEAD /chunks HTTP/1.1\r\n" + host + "\r\n", chunked + "\r\n"},
        {"a failed stream is cut, not ended", "GET /broken HTTP/1.1\r\n" + host + "\r\n", chunked + "\r\n4\r\npart\r\n"},
        {"fields cannot be injected", "GET /split HTTP/1.1\r\n" + host + "\r\n", ok("")},
        {"expect continue",
         "POST /echo HTTP/1.1\r\n" + host + "Expect: 100-continue\r\nContent-Length: 2\r\n\r\nok", ok("POST /echo ok")},
        {"unknown expectation", "POST /echo HTTP/1.1\r\n" + host + "Expect: x\r\nContent-Length: 2\r\n\r\nok",
         refused("417 Expectation Failed", "only 100-continue can be expected")},
        {"no host", "GET /echo HTTP/1.1\r\n\r\n", refused("400 Bad Request", "exactly one Host field is needed")},
        {"two hosts", "GET /echo HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
         refused("400 Bad Request", "exactly one Host field is needed")},
        {"connect", "CONNECT a:1 HTTP/1.1\r\n" + host + "\r\n", refused("501 Not Implemented", "this is no proxy")},
        {"body over the limit by length",
         "POST /echo HTTP/1.1\r\n" + host + "Content-Length: 65537\r\n\r\n",
         refused("413 Content Too Large", "the body is over the limit of 65536 bytes")},
        {"body over the limit in chunks",
         "POST /echo HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n10001\r\n" + std::string(0x10001, 'x') + "\r\n0\r\n\r\n",
         refused("413 Content Too Large", "the body is over the limit of 65536 bytes")},
        {"body at the limit", "POST /echo HTTP/1.1\r\n" + host + "Content-Length: 65536\r\n\r\n" + std::string(65536, 'x'),
         ok("POST /echo " + std::string(65536, 'x'))},
        {"a field over the limit", "GET /echo HTTP/1.1\r\n" + host + "A: " + std::string(17'000, 'x') + "\r\n\r\n",
         refused("431 Request Header Fields Too Large", "header fields are too large")},
        {"a target over the limit", "GET /" + std::string(17'000, 'x') + " HTTP/1.1\r\n" + host + "\r\n",
         refused("431 Request Header Fields Too Large", "header fields are too large")},
        {"half a request, then nothing", "GET /echo HTTP/1.1\r\nHo", ""},
        {"half a body, then nothing", "POST /echo HTTP/1.1\r\n" + host + "Content-Length: 5\r\n\r\nab", ""},
        {"streamed request body", "POST /count HTTP/1.1\r\n" + host + "Content-Length: 5\r\n\r\nabcde",
         "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 9\r\n\r\n5 at once"},
        {"streamed request body, then the next",
         "POST /count HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\nGET /echo HTTP/1.1\r\n" + host + "\r\n",
         "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 9\r\n\r\n1 at once" + ok("GET /echo ")},
    };
    std::vector<std::string> got(cases.size());
    with_server(Limits{},
                [&](std::uint16_t port)
                {
                    for (std::size_t i = 0; i < cases.size(); ++i) { got[i] = ask(port, cases[i].request); }
                });
    for (std::size_t i = 0; i < cases.size(); ++i)
    {
        INFO(cases[i].name);
        CHECK(got[i] == cases[i].response);
    }
}

TEST_CASE("malformed requests get a 4xx or 5xx and the connection ends")
{
    const std::vector<std::string> requests = {
        "nonsense\r\n\r\n",
        "GET /echo\r\n\r\n",
        "GET /echo HTTP/2.0\r\n" + host + "\r\n",
        "GET /echo HTTP/1.1\r\n" + host + "Bad Name: x\r\n\r\n",
        "GET /echo HTTP/1.1\r\n" + host + "A: x\0y\r\n\r\n"s,
        "POST /echo HTTP/1.1\r\n" + host + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "POST /echo HTTP/1.1\r\n" + host + "Content-Length: -1\r\n\r\n",
        "POST /echo HTTP/1.1\r\n" + host + "Content-Length: 99999999999999999999\r\n\r\n",
        "POST /echo HTTP/1.1\r\n" + host + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        "POST /echo HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip\r\n\r\nabc",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"s,
        "POST /echo HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n1;" + std::string(20'000, 'x') + "\r\na\r\n0\r\n\r\n",
    };
    std::vector<std::string> got(requests.size());
    with_server(Limits{},
                [&](std::uint16_t port)
                {
                    for (std::size_t i = 0; i < requests.size(); ++i) { got[i] = ask(port, requests[i] + "GET /echo HTTP/1.1\r\n\r\n"); }
                });
    for (std::size_t i = 0; i < requests.size(); ++i)
    {
        INFO(requests[i].substr(0, 100));
        INFO(got[i]);
        CHECK((got[i].starts_with("HTTP/1.1 4") || got[i].starts_with("HTTP/1.1 5")));
        CHECK(got[i].find("200 OK") == std::string::npos);
    }
}

TEST_CASE("a request may come one byte at a time, cut anywhere")
{
    const std::string request = "POST /echo HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    std::vector<std::string> got;
    std::string slow;
    with_server(Limits{},
                [&](std::uint16_t port)
                {
                    RawClient client{port};
                    for (std::size_t cut = 1; cut < request.size(); ++cut)
                    {
                        client.send(request.substr(0, cut));
                        client.send(request.substr(cut));
                        got.push_back(undated(client.read_until("abc")));
                    }
                    for (const char c : request) { client.send({&c, 1}); }
                    slow = undated(client.read_until("abc"));
                });
    CHECK(got.size() == request.size() - 1);
    for (const auto& one : got) { CHECK(one == ok("POST /echo abc")); }
    CHECK(slow == ok("POST /echo abc"));
}

TEST_CASE("100 continue is sent before the body, and not when the body is refused")
{
    std::string first;
    std::string second;
    std::string over;
    with_server(Limits{},
                [&](std::uint16_t port)
                {
                    RawClient client{port};
                    client.send("POST /echo HTTP/1.1\r\n" + host + "Expect: 100-continue\r\nContent-Length: 2\r\n\r\n");
                    first = client.read_until("\r\n\r\n");
                    client.send("hi");
                    second = undated(client.read_until("hi"));
                    over = ask(port, "POST /echo HTTP/1.1\r\n" + host + "Expect: 100-continue\r\nContent-Length: 70000\r\n\r\n");
                });
    CHECK(first == "HTTP/1.1 100 Continue\r\n\r\n");
    CHECK(second == ok("POST /echo hi"));
    CHECK(over.starts_with("HTTP/1.1 413 "));
}

TEST_CASE("a thousand pipelined requests are answered in order")
{
    std::string all;
    std::string expected;
    for (int i = 0; i < 1000; ++i)
    {
        all += "GET /echo?" + std::to_string(i) + " HTTP/1.1\r\n" + host + "\r\n";
        expected += ok("GET /echo?" + std::to_string(i) + " ");
    }
    std::string got;
    with_server(Limits{}, [&](std::uint16_t port) { got = ask(port, all); });
    CHECK(got == expected);
}

TEST_CASE("a client that is too slow is closed, and others do not notice")
{
    Limits limits;
    limits.header_timeout = milliseconds{60};
    limits.body_timeout = milliseconds{60};
    limits.idle_timeout = milliseconds{100};
    limits.handler_timeout = milliseconds{60};
    std::vector<std::string> got;
    with_server(limits,
                [&](std::uint16_t port)
                {
                    RawClient idle{port};
                    RawClient head{port};
                    head.send("GET /echo HT");
                    RawClient body{port};
                    body.send("POST /echo HTTP/1.1\r\n" + host + "Content-Length: 5\r\n\r\nab");
                    RawClient handler{port};
                    handler.send("GET /slower HTTP/1.1\r\n" + host + "\r\n");
                    got.push_back(ask(port, "GET /echo HTTP/1.1\r\n" + host + "\r\n"));
                    got.push_back(undated(head.read_all()));
                    got.push_back(undated(body.read_all()));
                    got.push_back(undated(handler.read_all()));
                    got.push_back(undated(idle.read_all()));
                });
    REQUIRE(got.size() == 5);
    CHECK(got[0] == ok("GET /echo "));
    CHECK(got[1] == refused("408 Request Timeout", "the request's fields took too long"));
    CHECK(got[2] == refused("408 Request Timeout", "the request's body took too long"));
    CHECK(got[3] == refused("503 Service Unavailable", "the request took too long"));
    CHECK(got[4].empty());
}

TEST_CASE("a drip of bytes does not extend the time for the fields")
{
    Limits limits;
    limits.header_timeout = milliseconds{80};
    bool ended = false;
    with_server(limits,
                [&](std::uint16_t port)
                {
                    RawClient client{port};
                    client.send("GET /echo HTTP/1.1\r\n");
                    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds{5};
                    while (std::chrono::steady_clock::now() < end && !client.readable() && client.send("A: b\r\n")) { usleep(5'000); }
                    ended = std::chrono::steady_clock::now() < end;
                });
    CHECK(ended);
}

TEST_CASE("a stream to a client that does not read stops at the bound and ends at its timeout")
{
    Limits limits;
    limits.max_unsent_bytes = 128 * 1024;
    limits.write_timeout = milliseconds{300};
    Loop loop;
    World world{loop};
    std::string reply;
    const Script script = [&](std::uint16_t port)
    {
        RawClient client{port};
        client.small_receive_buffer();
        client.send("GET /forever HTTP/1.1\r\n" + host + "\r\n");
        reply = ask(port, "GET /echo HTTP/1.1\r\n" + host + "\r\n");
        // While the stream is stuck its task lives; the server cuts it.
        const auto end = std::chrono::steady_clock::now() + std::chrono::seconds{5};
        RawClient other{port};
        do
        {
            other.send("GET /echo HTTP/1.1\r\n" + host + "\r\n");
            other.read_until("GET /echo ");
            usleep(10'000);
        } while (world.alive != 0 && std::chrono::steady_clock::now() < end);
    };
    loop.run(serve_script(loop, limits, script, &world));
    CHECK(reply == ok("GET /echo "));
    CHECK(world.alive == 0);
    CHECK(world.streamed > 0);
    CHECK(world.streamed < 16U * 1024 * 1024); // the sockets' own buffers, and ours
}

TEST_CASE("a stream's task ends when the client goes away, also when it writes nothing")
{
    Loop loop;
    World world{loop};
    std::atomic<int> while_open = -1;
    const Script script = [&](std::uint16_t port)
    {
        {
            RawClient client{port};
            client.send("GET /silence HTTP/1.1\r\n" + host + "\r\n");
            client.read_until("first\n");
            while_open = world.alive.load();
        }
        const auto end = std::chrono::steady_clock::now() + std::chrono::seconds{5};
        RawClient other{port};
        do
        {
            other.send("GET /echo HTTP/1.1\r\n" + host + "\r\n");
            other.read_until("GET /echo ");
        } while (world.alive != 0 && std::chrono::steady_clock::now() < end);
    };
    loop.run(serve_script(loop, Limits{}, script, &world));
    CHECK(while_open == 1);
    CHECK(world.alive == 0);
}

TEST_CASE("a handler's work is not cut when its client resets the connection")
{
    Loop loop;
    World world{loop};
    const Script script = [&](std::uint16_t port)
    {
        RawClient client{port};
        client.send("GET /slow HTTP/1.1\r\n" + host + "\r\n");
        const auto end = std::chrono::steady_clock::now() + std::chrono::seconds{5};
        while (world.alive == 0 && std::chrono::steady_clock::now() < end) { usleep(500); }
        client.reset_on_close();
    };
    loop.run(serve_script(loop, Limits{}, script, &world));
    CHECK(world.completed == 1);
}

TEST_CASE("a large body goes out whole, and a streamed one comes in with a bound")
{
    std::string big;
    std::string counted;
    std::string over;
    const std::string log = with_server(
        Limits{},
        [&](std::uint16_t port)
        {
            big = ask(port, "GET /big HTTP/1.1\r\n" + host + "\r\n");
            counted = ask(port, "POST /count HTTP/1.1\r\n" + host + "Content-Length: 900000\r\n\r\n" + std::string(900'000, 'y'));
            over = ask(port, "POST /count HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nf4241\r\n" +
                                 std::string(0xf4241, 'y') + "\r\n0\r\n\r\n");
        });
    CHECK(big == ok(std::string(1'000'000, 'b')));
    CHECK(counted.ends_with("900000 in pieces"));
    CHECK(over.starts_with("HTTP/1.1 413 "));
    CHECK(log == "the body is over the limit of 1000000 bytes");
}

TEST_CASE("a streamed body whose client goes away is an error to its reader")
{
    const std::string log = with_server(Limits{},
                                        [&](std::uint16_t port)
                                        {
                                            RawClient client{port};
                                            client.send("POST /count HTTP/1.1\r\n" + host + "Expect: 100-continue\r\nContent-Length: 10\r\n\r\n");
                                            client.read_until("\r\n\r\n");
                                            client.send("abc");
                                        });
    CHECK(log == "connection_closed: the peer went away before the end of the body");
}

TEST_CASE("above the connection limit the one that waits longest makes room")
{
    Limits limits;
    limits.max_connections = 3;
    std::vector<std::string> got;
    with_server(limits,
                [&](std::uint16_t port)
                {
                    RawClient first{port};
                    first.send("GET /echo HTTP/1.1\r\n"); // half a request
                    RawClient second{port};
                    second.send("GET /echo HTTP/1.1\r\n" + host + "\r\n");
                    got.push_back(undated(second.read_until("GET /echo ")));
                    RawClient third{port};
                    third.send("GET /echo HTTP/1.1\r\n" + host + "\r\n");
                    got.push_back(undated(third.read_until("GET /echo ")));
                    got.push_back(ask(port, "GET /echo HTTP/1.1\r\n" + host + "\r\n"));
                    got.push_back(first.read_all());
                });
    REQUIRE(got.size() == 4);
    CHECK(got[0] == ok("GET /echo "));
    CHECK(got[1] == ok("GET /echo "));
    CHECK(got[2] == ok("GET /echo "));
    CHECK((got[3].empty() || got[3] == "<reset>"));
}

TEST_CASE("when all places are busy a client is told so")
{
    Limits limits;
    limits.max_connections = 2;
    std::string got;
    with_server(limits,
                [&](std::uint16_t port)
                {
                    RawClient first{port};
                    first.send("GET /silence HTTP/1.1\r\n" + host + "\r\n");
                    first.read_until("first\n");
                    RawClient second{port};
                    second.send("GET /silence HTTP/1.1\r\n" + host + "\r\n");
                    second.read_until("first\n");
                    RawClient third{port};
                    got = undated(third.read_all());
                });
    CHECK(got.starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
    CHECK(got.find("Retry-After: 1\r\n") != std::string::npos);
}

namespace
{
Task<> drain_story(Loop& loop, std::string* busy, bool* refused_later, World* world)
{
    const http::Handler handler = [world](Request request) { return answer(std::move(request), world); };
    http::Server server{loop, Limits{}, handler};
    auto listening = server.listen_tcp("127.0.0.1", 0);
    static_cast<void>(listening);
    const std::uint16_t port = server.port();
    auto work = [port, busy, refused_later]
    {
        RawClient idle{port};
        *busy = ask(port, "GET /slow HTTP/1.1\r\n" + host + "\r\n");
        *refused_later = !RawClient{port}.connected() && idle.read_all().empty();
        return true;
    };
    auto client = offload(loop, work);
    Scope scope{loop};
    bool over = false;
    const auto run = [](Task<bool> task, bool* out) -> Task<>
    {
        auto done = co_await task;
        *out = done;
    };
    scope.spawn(run(std::move(client), &over));
    co_await world->started.wait();
    const milliseconds limit{5'000};
    co_await server.drain(limit);
    co_await scope.drain();
}
} // namespace

TEST_CASE("draining answers what is in work, closes what is idle and accepts nothing")
{
    Loop loop;
    World world{loop};
    std::string busy;
    bool refused_later = false;
    loop.run(drain_story(loop, &busy, &refused_later, &world));
    CHECK(busy.ends_with("slow"));
    CHECK(refused_later);
}

namespace
{
Task<> destroy_story(Loop& loop, World* world)
{
    const http::Handler handler = [world](Request request) { return answer(std::move(request), world); };
    auto server = std::make_unique<http::Server>(loop, Limits{}, handler);
    auto listening = server->listen_tcp("127.0.0.1", 0);
    static_cast<void>(listening);
    RawClient client{server->port()};
    client.send("GET /slower HTTP/1.1\r\n" + host + "\r\n");
    co_await world->started.wait();
    world->log = std::to_string(world->alive);
    server.reset();
    world->log += std::to_string(world->alive);
}

Task<> unix_story(Loop& loop, std::string folder, std::vector<std::string>* got, World* world)
{
    const std::string path = folder + "/http.sock";
    const http::Handler handler = [world](Request request) { return answer(std::move(request), world); };
    {
        http::Server server{loop, Limits{}, handler};
        auto listening = server.listen_unix(path, 0600);
        got->push_back(listening ? "listens" : listening.error().message);
        struct stat info{};
        stat(path.c_str(), &info);
        got->push_back(std::to_string(info.st_mode & 0777));
        http::Server second{loop, Limits{}, handler};
        auto again = second.listen_unix(path, 0600);
        got->push_back(again ? "listens" : again.error().message);
        auto work = [path]
        {
            RawClient client{path};
            client.send("GET /peer HTTP/1.1\r\n" + host + "\r\n");
            return undated(client.read_until("unix"));
        };
        auto asking = offload(loop, work);
        auto answered = co_await asking;
        got->push_back(answered);
    }
    // A socket that a killed process left behind.
    const int dead = socket(AF_UNIX, SOCK_STREAM, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    unlink(path.c_str());
    got->push_back(bind(dead, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ? "left" : "not bound");
    close(dead);
    http::Server third{loop, Limits{}, handler};
    auto over_dead = third.listen_unix(path, 0600);
    got->push_back(over_dead ? "listens" : over_dead.error().message);
}

Task<> fd_story(Loop& loop, std::string* got, World* world)
{
    const http::Handler handler = [world](Request request) { return answer(std::move(request), world); };
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address);
    listen(fd, 16);
    http::Server server{loop, Limits{}, handler};
    auto listening = server.listen_fd(fd);
    static_cast<void>(listening);
    const std::uint16_t port = server.port();
    auto work = [port] { return ask(port, "GET /echo HTTP/1.1\r\n" + host + "\r\n"); };
    auto asking = offload(loop, work);
    auto answered = co_await asking;
    *got = answered;
}
} // namespace

TEST_CASE("destroying the server destroys its handlers")
{
    Loop loop;
    World world{loop};
    loop.run(destroy_story(loop, &world));
    CHECK(world.log == "10");
}

TEST_CASE("unix sockets: mode, a live one is not taken over, a dead one is replaced")
{
    Loop loop;
    World world{loop};
    std::vector<std::string> got;
    std::string folder = (std::filesystem::temp_directory_path() / "http_XXXXXX").string();
    REQUIRE(mkdtemp(folder.data()) != nullptr);
    loop.run(unix_story(loop, folder, &got, &world));
    const std::string path = folder + "/http.sock";
    CHECK(got == std::vector<std::string>{"listens", std::to_string(0600),
                                          "listen " + path + ": another process listens there", ok("unix"), "left", "listens"});
    std::filesystem::remove_all(folder);
}

TEST_CASE("an inherited listener is served")
{
    Loop loop;
    World world{loop};
    std::string got;
    loop.run(fd_story(loop, &got, &world));
    CHECK(got == ok("GET /echo "));
}

TEST_CASE("an address that is taken or is none is refused by name")
{
    Loop loop;
    const http::Handler handler;
    http::Server first{loop, Limits{}, handler};
    REQUIRE(first.listen_tcp("127.0.0.1", 0));
    http::Server second{loop, Limits{}, handler};
    const auto taken = second.listen_tcp("127.0.0.1", first.port());
    REQUIRE_FALSE(taken);
    CHECK(taken.error().code == Errc::already_exists);
    const auto name = second.listen_tcp("localhost", 1);
    REQUIRE_FALSE(name);
    CHECK(name.error().code == Errc::invalid_argument);
}
