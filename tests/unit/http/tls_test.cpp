#include "shared/http/client.hpp"
#include "shared/http/server.hpp"
#include "tests/catch.hpp"
#include "tests/unit/http/certificates.hpp"
#include "tests/unit/http/raw_client.hpp"
#include <vector>

using namespace dstack;
using http::ClientRequest;
using http::Request;
using http::Response;
using http::TlsClientConfig;
using http::TlsServerConfig;

namespace
{

struct World
{
    Identity ca = make_identity("ca", "", nullptr);
    Identity other_ca = make_identity("other ca", "", nullptr);
    Identity server = make_identity("server", "IP:127.0.0.1,DNS:localhost", &ca);
    Identity renewed = make_identity("server 2", "IP:127.0.0.1", &ca);
    Identity elsewhere = make_identity("elsewhere", "DNS:elsewhere.example", &ca);
    Identity expired = make_identity("expired", "IP:127.0.0.1", &ca, -60);
    Identity client = make_identity("client", "DNS:client", &ca);
    Identity stranger = make_identity("stranger", "DNS:stranger", &other_ca);
};

const World& world()
{
    static const World all;
    return all;
}

Task<Response> answer(Request request)
{
    const World& w = world();
    const std::string who = request.peer_certificate_der.empty()                    ? "nobody"
                            : request.peer_certificate_der == w.client.cert_der     ? "client"
                            : request.peer_certificate_der == w.stranger.cert_der   ? "stranger"
                                                                                    : "unknown";
    Response response = http::text_response(200, who + (request.tls ? " tls " : " plain ") + std::to_string(request.body.size()));
    if (request.path() == "/big") { response.body.assign(3'000'000, 'b'); }
    co_return response;
}

std::string text_of(const Result<http::ClientResponse>& response)
{
    return response ? std::to_string(response->status) + " " + response->body
                    : std::string{to_string(response.error().code)} + ": " + response.error().message;
}

Task<> ask_story(Loop& loop, TlsServerConfig server_config, ClientRequest request, std::string path, std::string* outcome,
                 std::string* certificate)
{
    const http::Handler handler = [](Request r) { return answer(std::move(r)); };
    http::Limits limits;
    limits.max_body_bytes = 4'000'000;
    http::Server server{loop, limits, handler};
    auto secured = server.use_tls(server_config);
    if (!secured)
    {
        *outcome = secured.error().message;
        co_return;
    }
    auto listening = server.listen_tcp("127.0.0.1", 0);
    static_cast<void>(listening);
    request.url = "https://127.0.0.1:" + std::to_string(server.port()) + path;
    http::Client client{loop};
    auto sending = client.send(request);
    auto response = co_await sending;
    *outcome = text_of(response);
    if (response && certificate != nullptr) { *certificate = response->peer_certificate_der; }
}

std::string ask(const Identity& identity, TlsServerConfig::ClientCertificate wanted, const TlsClientConfig& tls,
                std::string body = "", std::string path = "/x", std::string* certificate = nullptr)
{
    TlsServerConfig server;
    server.cert_chain_pem = identity.cert_pem;
    server.key_pem = identity.key_pem;
    server.client_certificate = wanted;
    server.client_ca_pem = world().ca.cert_pem;
    ClientRequest request;
    request.method = "POST";
    request.body = std::move(body);
    request.tls = tls;
    request.max_response_bytes = 4'000'000;
    Loop loop;
    std::string outcome;
    loop.run(ask_story(loop, server, request, std::move(path), &outcome, certificate));
    return std::regex_replace(outcome, std::regex{"127\\.0\\.0\\.1:[0-9]+"}, "HOST");
}

TlsClientConfig trusting(const Identity& ca)
{
    TlsClientConfig tls;
    tls.verify = TlsClientConfig::Verify::ca;
    tls.ca_pem = ca.cert_pem;
    return tls;
}

using Wanted = TlsServerConfig::ClientCertificate;

} // namespace

TEST_CASE("a verified server answers, and its certificate is reported")
{
    std::string certificate;
    CHECK(ask(world().server, Wanted::none, trusting(world().ca), "abc", "/x", &certificate) == "200 nobody tls 3");
    CHECK(certificate == world().server.cert_der);
}

TEST_CASE("large bodies go both ways")
{
    const std::string outcome = ask(world().server, Wanted::none, trusting(world().ca), std::string(3'000'000, 'q'));
    CHECK(outcome == "200 nobody tls 3000000");
    const std::string big = ask(world().server, Wanted::none, trusting(world().ca), "", "/big");
    CHECK(big.size() == 3'000'004);
}

TEST_CASE("a server that cannot be verified is refused with the reason")
{
    const std::string start = "unauthenticated: tls_certificate: https://HOST/x: ";
    CHECK(ask(world().server, Wanted::none, trusting(world().other_ca)).starts_with(start + "unable to get local issuer"));
    CHECK(ask(world().elsewhere, Wanted::none, trusting(world().ca)) == start + "IP address mismatch");
    CHECK(ask(world().expired, Wanted::none, trusting(world().ca)) == start + "certificate has expired");
    CHECK(ask(world().server, Wanted::none, TlsClientConfig{}).starts_with(start)); // the machine does not know our CA
    TlsClientConfig named = trusting(world().ca);
    named.server_name = "elsewhere.example";
    CHECK(ask(world().elsewhere, Wanted::none, named) == "200 nobody tls 0");
    named.server_name = "localhost.example";
    CHECK(ask(world().elsewhere, Wanted::none, named) == start + "hostname mismatch");
}

TEST_CASE("without verification any certificate is taken and reported")
{
    TlsClientConfig tls;
    tls.verify = TlsClientConfig::Verify::none;
    std::string certificate;
    CHECK(ask(world().expired, Wanted::none, tls, "", "/x", &certificate) == "200 nobody tls 0");
    CHECK(certificate == world().expired.cert_der);
}

TEST_CASE("client certificates: none, any, from the ca, required")
{
    TlsClientConfig nobody = trusting(world().ca);
    TlsClientConfig client = nobody;
    client.cert_chain_pem = world().client.cert_pem;
    client.key_pem = world().client.key_pem;
    TlsClientConfig stranger = nobody;
    stranger.cert_chain_pem = world().stranger.cert_pem;
    stranger.key_pem = world().stranger.key_pem;
    struct Case
    {
        Wanted wanted;
        const TlsClientConfig* tls;
        std::string start;
    };
    const Case cases[] = {
        {Wanted::none, &client, "200 nobody"},
        {Wanted::request_any, &nobody, "200 nobody"},
        {Wanted::request_any, &client, "200 client"},
        {Wanted::request_any, &stranger, "200 stranger"},
        {Wanted::request_ca, &nobody, "200 nobody"},
        {Wanted::request_ca, &client, "200 client"},
        {Wanted::request_ca, &stranger, "unavailable: tls_handshake: https://HOST/x: "},
        {Wanted::require_ca, &client, "200 client"},
        {Wanted::require_ca, &nobody, "unavailable: tls_handshake: https://HOST/x: "},
        {Wanted::require_ca, &stranger, "unavailable: tls_handshake: https://HOST/x: "},
    };
    for (const Case& c : cases)
    {
        const std::string outcome = ask(world().server, c.wanted, *c.tls);
        INFO(outcome);
        CHECK(outcome.starts_with(c.start));
    }
}

TEST_CASE("a wrong configuration is refused")
{
    const World& w = world();
    TlsServerConfig config;
    config.cert_chain_pem = w.server.cert_pem;
    config.key_pem = w.client.key_pem;
    Loop loop;
    http::Server server{loop, http::Limits{}, {}};
    auto wrong_key = server.use_tls(config);
    REQUIRE_FALSE(wrong_key);
    CHECK(wrong_key.error().message.starts_with("bad_tls_config: private key does not fit the certificate"));
    config.key_pem = "";
    CHECK_FALSE(server.use_tls(config));
    config.key_pem = w.server.key_pem;
    config.cert_chain_pem = "";
    CHECK_FALSE(server.use_tls(config));
    config.cert_chain_pem = w.server.cert_pem;
    config.client_certificate = Wanted::require_ca;
    CHECK_FALSE(server.use_tls(config));
}

namespace
{

Task<> replace_story(Loop& loop, std::vector<std::string>* got)
{
    const World& w = world();
    const http::Handler handler = [](Request r) { return answer(std::move(r)); };
    http::Limits limits;
    limits.header_timeout = milliseconds{80};
    http::Server server{loop, limits, handler};
    TlsServerConfig config;
    config.cert_chain_pem = w.server.cert_pem;
    config.key_pem = w.server.key_pem;
    auto first = server.use_tls(config);
    auto listening = server.listen_tcp("127.0.0.1", 0);
    static_cast<void>(listening);
    const std::uint16_t port = server.port();
    http::Client client{loop};
    ClientRequest request;
    request.url = "https://127.0.0.1:" + std::to_string(port) + "/x";
    request.tls.verify = TlsClientConfig::Verify::none;
    auto before = client.send(request);
    auto one = co_await before;
    got->push_back(one && one->peer_certificate_der == w.server.cert_der ? "first" : text_of(one));
    config.cert_chain_pem = w.renewed.cert_pem;
    config.key_pem = w.renewed.key_pem;
    auto second = server.use_tls(config);
    auto after = client.send(request);
    auto two = co_await after;
    got->push_back(two && two->peer_certificate_der == w.renewed.cert_der ? "renewed" : text_of(two));
    // Plain text to a TLS port, and a client that never shakes hands: both end, nobody else suffers.
    auto work = [port]
    {
        RawClient plain{port};
        plain.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        const std::string reply = plain.read_all();
        RawClient silent{port};
        const std::string nothing = silent.read_all();
        return (reply.find("200") == std::string::npos ? "refused" : reply) + " " + (nothing.empty() ? "closed" : nothing);
    };
    auto asking = offload(loop, work);
    auto answered = co_await asking;
    got->push_back(answered);
    request.url.replace(0, 5, "http");
    auto plain = client.send(request);
    auto three = co_await plain;
    got->push_back(three ? "answered" : "no plain text");
}

} // namespace

TEST_CASE("certificates are replaced while serving; what is no TLS ends")
{
    Loop loop;
    std::vector<std::string> got;
    loop.run(replace_story(loop, &got));
    CHECK(got == std::vector<std::string>{"first", "renewed", "refused closed", "no plain text"});
}
