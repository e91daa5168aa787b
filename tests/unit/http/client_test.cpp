#include "shared/http/client.hpp"
#include "shared/http/server.hpp"
#include "tests/catch.hpp"
#include "tests/unit/http/raw_client.hpp"
#include <filesystem>
#include <vector>

using namespace dstack;
using http::ClientRequest;
using http::Request;
using http::Response;

namespace
{

/// A listener whose only answer is fixed bytes: what a broken server may send.
class FixedServer
{
  public:
    FixedServer() : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0))
    {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        if (bind(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) { std::abort(); }
        socklen_t size = sizeof address;
        getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size);
        port_ = ntohs(address.sin_port);
        listen(fd_, 8);
    }
    FixedServer(const FixedServer&) = delete;
    FixedServer& operator=(const FixedServer&) = delete;
    ~FixedServer() { close(fd_); }
    std::string url() const { return "http://127.0.0.1:" + std::to_string(port_) + "/x?secret=1"; }
    int fd() const { return fd_; }
    /// Blocking, for a pool thread: one connection; returns the request's head.
    static std::string answer_once(int listener, const std::string& bytes, bool reset)
    {
        const int fd = accept(listener, nullptr, nullptr);
        std::string head;
        char c = 0;
        while (!head.ends_with("\r\n\r\n") && recv(fd, &c, 1, 0) == 1) { head.push_back(c); }
        std::string_view rest = bytes;
        while (!rest.empty())
        {
            const ssize_t sent = send(fd, rest.data(), rest.size(), MSG_NOSIGNAL);
            if (sent <= 0) { break; }
            rest.remove_prefix(static_cast<std::size_t>(sent));
        }
        if (reset)
        {
            const linger now{1, 0};
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
        }
        close(fd);
        return head;
    }

  private:
    int fd_;
    std::uint16_t port_ = 0;
};

struct Answer
{
    std::string outcome; ///< "200 body" or "code: message"
    std::string request;
};

Task<> keep(Task<std::string> task, std::string* out)
{
    auto text = co_await task;
    *out = text;
}

Task<> ask_fixed(Loop& loop, ClientRequest request, std::string bytes, bool reset, Answer* answer)
{
    FixedServer fixed;
    request.url = fixed.url();
    auto work = [fd = fixed.fd(), bytes, reset] { return FixedServer::answer_once(fd, bytes, reset); };
    Scope scope{loop};
    scope.spawn(keep(offload(loop, work), &answer->request));
    http::Client client{loop};
    auto sending = client.send(request);
    auto response = co_await sending;
    answer->outcome = response ? std::to_string(response->status) + " " + response->body
                               : std::string{to_string(response.error().code)} + ": " + response.error().message;
    co_await scope.drain();
}

Answer ask_fixed(ClientRequest request, const std::string& bytes, bool reset = false)
{
    Loop loop;
    Answer answer;
    loop.run(ask_fixed(loop, std::move(request), bytes, reset, &answer));
    answer.outcome = std::regex_replace(answer.outcome, std::regex{"127\\.0\\.0\\.1:[0-9]+"}, "HOST");
    answer.request = std::regex_replace(answer.request, std::regex{"127\\.0\\.0\\.1:[0-9]+"}, "HOST");
    return answer;
}

Task<> ask_once(Loop& loop, ClientRequest request, std::string* outcome)
{
    http::Client client{loop};
    auto sending = client.send(request);
    auto response = co_await sending;
    *outcome = response ? std::to_string(response->status) + " " + response->body
                        : std::string{to_string(response.error().code)} + ": " + response.error().message;
}

std::string ask(ClientRequest request)
{
    Loop loop;
    std::string outcome;
    loop.run(ask_once(loop, std::move(request), &outcome));
    return outcome;
}

} // namespace

TEST_CASE("responses are read and their failures are classified")
{
    struct Case
    {
        std::string name;
        std::string bytes;
        std::string outcome;
    };
    const Case cases[] = {
        {"length", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "200 hi"},
        {"chunked", "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n", "201 hi"},
        {"until the end", "HTTP/1.0 200 OK\r\n\r\nhi", "200 hi"},
        {"no body", "HTTP/1.1 204 No Content\r\n\r\n", "204 "},
        {"an error status is an answer", "HTTP/1.1 500 X\r\nContent-Length: 1\r\n\r\n!", "500 !"},
        {"continue comes first", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "200 hi"},
        {"cut off body", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi", "internal: bad_response: http://HOST/x: the response was cut off"},
        {"cut off chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhi", "internal: bad_response: http://HOST/x: the response was cut off"},
        {"cut off head", "HTTP/1.1 200 OK\r\nConte", "internal: bad_response: http://HOST/x: the response was cut off"},
        {"nothing", "", "unavailable: connection_closed: http://HOST/x: the peer closed the connection without an answer"},
        {"length over the limit", "HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n",
         "resource_exhausted: response_too_large: http://HOST/x: the body is over the limit of 1000 bytes"},
        {"bytes over the limit", "HTTP/1.0 200 OK\r\n\r\n" + std::string(1001, 'x'),
         "resource_exhausted: response_too_large: http://HOST/x: the body is over the limit of 1000 bytes"},
    };
    for (const Case& c : cases)
    {
        INFO(c.name);
        ClientRequest request;
        request.max_response_bytes = 1000;
        CHECK(ask_fixed(request, c.bytes).outcome == c.outcome);
    }
    CHECK(ask_fixed({}, "SSH-2.0-x\r\n").outcome.starts_with("internal: bad_response: http://HOST/x: malformed message"));
    CHECK(ask_fixed({}, "HTTP/1.1 200 OK\r\nA: " + std::string(70'000, 'x')).outcome.starts_with("internal: bad_response: http://HOST/x: header"));
    CHECK(ask_fixed({}, "", true).outcome.starts_with("unavailable: connection_reset: http://HOST/x: "));
}

TEST_CASE("requests are written byte for byte")
{
    const std::string done = "HTTP/1.1 204 No Content\r\n\r\n";
    ClientRequest get;
    CHECK(ask_fixed(get, done).request == "GET /x?secret=1 HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n");
    ClientRequest post;
    post.method = "POST";
    post.headers.add("Content-Type", "application/json");
    post.headers.add("Host", "other");
    post.headers.add("Content-Length", "77");
    post.body = "{}";
    CHECK(ask_fixed(post, done).request ==
          "POST /x?secret=1 HTTP/1.1\r\nContent-Type: application/json\r\nHost: other\r\nContent-Length: 2\r\nConnection: close\r\n\r\n");
    ClientRequest head;
    head.method = "HEAD";
    CHECK(ask_fixed(head, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n").outcome == "200 ");
}

TEST_CASE("what cannot be sent is refused before anything is connected")
{
    struct Case
    {
        std::string method;
        std::string url;
        std::string field;
        std::string start;
    };
    const Case cases[] = {
        {"GET", "ftp://a/", "x", "invalid_argument: bad_url: "},
        {"GET", "http://", "x", "invalid_argument: bad_url: "},
        {"GET", "http://a:0/", "x", "invalid_argument: bad_url: "},
        {"GET", "http://a:65536/", "x", "invalid_argument: bad_url: "},
        {"GET", "http://a:1x/", "x", "invalid_argument: bad_url: "},
        {"GET", "http://[::1/", "x", "invalid_argument: bad_url: "},
        {"GET", "http://u@a/", "x", "invalid_argument: bad_url: "},
        {"GET", "http://127.0.0.1:1/a b", "x", "invalid_argument: bad_url: "},
        {"GET", "http://127.0.0.1:1/a\r\nX: y", "x", "invalid_argument: bad_url: "},
        {"GET", "unix:" + std::string(200, 'a') + ":/", "x", "invalid_argument: bad_url: "},
        {"G T", "http://127.0.0.1:1/", "x", "invalid_argument: bad_request: "},
        {"GET", "http://127.0.0.1:1/", "x\r\ny: z", "invalid_argument: bad_request: "},
    };
    for (const Case& c : cases)
    {
        INFO(c.url);
        ClientRequest request;
        request.method = c.method;
        request.url = c.url;
        request.headers.add("A", c.field);
        CHECK(ask(request).starts_with(c.start));
    }
}

TEST_CASE("who does not listen, and who does not answer")
{
    ClientRequest request;
    request.url = "http://127.0.0.1:1/a?token=x";
    CHECK(ask(request) == "unavailable: connection_refused: http://127.0.0.1:1/a: nobody listens there");
    request.url = "http://[::1]:1/a";
    CHECK(ask(request).starts_with("unavailable: "));
    request.url = "unix:/nonexistent/x.sock:/a";
    CHECK(ask(request) == "unavailable: not_found: unix:/nonexistent/x.sock:/a: there is no such socket");
    const FixedServer silent; // accepts in the kernel, never answers
    request.url = silent.url();
    request.timeout = milliseconds{50};
    const std::string outcome = ask(request);
    CHECK(outcome.starts_with("deadline_exceeded: timeout: http://127.0.0.1:"));
    CHECK(outcome.ends_with("/x: no answer within 50 ms"));
    CHECK(outcome.find("secret") == std::string::npos);
}

TEST_CASE("a name that exists nowhere")
{
    ClientRequest request;
    request.url = "http://no-such-host.invalid:1/";
    request.connect_timeout = milliseconds{5'000};
    const std::string outcome = ask(request);
    CHECK((outcome.starts_with("unavailable: name_not_found: ") || outcome.starts_with("deadline_exceeded: ")));
}

namespace
{

Task<Result<Done>> tick(http::BodyWriter* out, Loop* loop, int count, bool* ended)
{
    struct Ended
    {
        bool* flag;
        ~Ended() { *flag = true; }
    } const guard{ended};
    for (int i = 0; i < count; ++i)
    {
        auto writing = out->write("line " + std::to_string(i) + "\n");
        auto written = co_await writing;
        if (!written) { co_return std::move(written).error(); }
        co_await sleep_for(*loop, milliseconds{1});
    }
    co_return Done{};
}

Task<Response> follow(Loop* loop, Request request, bool* ended)
{
    Response response;
    const int count = request.path() == "/few" ? 3 : 1'000'000;
    response.stream = [loop, count, ended](http::BodyWriter& out) { return tick(&out, loop, count, ended); };
    co_return response;
}

Task<> stream_story(Loop& loop, std::string url_path, std::vector<std::string>* got, bool* ended)
{
    const http::Handler handler = [&loop, ended](Request request) { return follow(&loop, std::move(request), ended); };
    http::Server server{loop, http::Limits{}, handler};
    std::string folder = (std::filesystem::temp_directory_path() / "http_XXXXXX").string();
    if (mkdtemp(folder.data()) == nullptr) { std::abort(); }
    auto listening = server.listen_unix(folder + "/s", 0600);
    if (!listening) { std::abort(); }
    {
        http::Client client{loop};
        ClientRequest request;
        request.url = "unix:" + folder + "/s:" + url_path;
        auto opening = client.open(request);
        auto stream = co_await opening;
        if (!stream) { std::abort(); }
        got->push_back(std::to_string(stream->status()) + " " + std::string{stream->headers().get("transfer-encoding")});
        std::string text;
        while (text.find("line 2\n") == std::string::npos)
        {
            const milliseconds limit{5'000};
            auto reading = stream->read(limit);
            auto bytes = co_await reading;
            if (!bytes) { std::abort(); }
            text += *bytes;
        }
        got->push_back(text.substr(0, 21));
        if (url_path == "/few")
        {
            const milliseconds limit{5'000};
            auto reading = stream->read(limit);
            auto end = co_await reading;
            got->push_back(end ? "end " + *end : end.error().message);
        }
    } // the client goes away
    const milliseconds limit{5'000};
    co_await server.drain(limit);
    std::filesystem::remove_all(folder);
}

Task<> many_story(Loop& loop, int* good)
{
    const http::Handler handler = [](Request request) -> Task<Response> { co_return http::text_response(200, request.body); };
    http::Server server{loop, http::Limits{}, handler};
    auto listening = server.listen_tcp("127.0.0.1", 0);
    static_cast<void>(listening);
    Scope scope{loop};
    const auto one = [](Loop* l, std::uint16_t port, int i, int* out) -> Task<>
    {
        http::Client client{*l};
        ClientRequest request;
        request.method = "POST";
        request.url = "http://localhost:" + std::to_string(port) + "/";
        request.body = std::string(static_cast<std::size_t>(i) * 300, 'x');
        const std::size_t size = request.body.size();
        auto sending = client.send(request);
        auto response = co_await sending;
        if (response && response->body.size() == size) { ++*out; }
    };
    for (int i = 0; i < 200; ++i) { scope.spawn(one(&loop, server.port(), i, good)); }
    co_await scope.drain();
}

Task<> cancel_story(Loop& loop)
{
    FixedServer silent;
    Scope scope{loop};
    std::vector<std::string> outcomes(3);
    const char* urls[] = {"http://no-such-host.invalid:1/", "http://10.255.255.1:9/", ""};
    for (std::size_t i = 0; i < 3; ++i)
    {
        ClientRequest request;
        request.url = i == 2 ? silent.url() : urls[i];
        scope.spawn(ask_once(loop, std::move(request), &outcomes[i]));
    }
    co_await next_turn(loop);
    scope.cancel();
}

} // namespace

TEST_CASE("a stream is read as it comes, to its end")
{
    Loop loop;
    std::vector<std::string> got;
    bool ended = false;
    loop.run(stream_story(loop, "/few", &got, &ended));
    CHECK(got == std::vector<std::string>{"200 chunked", "line 0\nline 1\nline 2\n", "end "});
    CHECK(ended);
}

TEST_CASE("dropping a stream ends it at the server")
{
    Loop loop;
    std::vector<std::string> got;
    bool ended = false;
    loop.run(stream_story(loop, "/many", &got, &ended));
    CHECK(got == std::vector<std::string>{"200 chunked", "line 0\nline 1\nline 2\n"});
    CHECK(ended);
}

TEST_CASE("many requests at once, by name")
{
    Loop loop;
    int good = 0;
    loop.run(many_story(loop, &good));
    CHECK(good == 200);
}

TEST_CASE("a request can be dropped in any state")
{
    Loop loop;
    loop.run(cancel_story(loop));
}
