#include "services/guest-agent/app_keys.hpp"
#include "services/guest-agent/notify_body.hpp"
#include "shared/attestation/simulated.hpp"
#include "shared/crypto/x509.hpp"
#include "shared/log/log.hpp"
#include <nlohmann/json.hpp>

namespace dstack::guest
{

namespace
{

using nlohmann::json;

struct TempCa
{
    std::string cert, key, ca_cert;
};

http::ClientRequest rpc(const std::string& url, std::string_view method, std::string body)
{
    http::ClientRequest request;
    request.method = "POST";
    request.url = url + "/prpc/" + std::string{method} + "?json";
    request.headers.add("Content-Type", "application/json");
    request.body = std::move(body);
    request.connect_timeout = milliseconds{5'000};
    request.timeout = milliseconds{30'000};
    return request;
}

/// The texts of an answer's fields, in the order asked for.
Result<std::vector<std::string>> fields(const http::ClientResponse& response, std::string_view method,
                                        std::initializer_list<const char*> names)
{
    if (response.status != 200)
    {
        const Errc code = response.status == 400 ? Errc::permission_denied : Errc::unavailable;
        return Error{code, rpc_error(response.body), {}, {}};
    }
    const json document = json::parse(response.body, nullptr, false);
    std::vector<std::string> out;
    for (const char* name : names)
    {
        const auto found = document.is_object() ? document.find(name) : document.end();
        if (!document.is_object() || found == document.end() || !found->is_string())
        {
            return Error{Errc::internal, std::string{method} + ": the answer has no " + name, {}, {}};
        }
        out.push_back(found->get<std::string>());
    }
    return out;
}

/// The server's certificate must be one that the KMS's CA issued for this purpose.
Result<Done> check_usage(std::string_view der)
{
    auto certificate = crypto::parse_cert_der(crypto::view(der));
    if (!certificate) { return std::move(certificate).error().within("KMS certificate"); }
    auto usage = certificate->extension(crypto::oid::cert_usage);
    if (!usage) { return std::move(usage).error().within("KMS certificate"); }
    if (!*usage || crypto::text(**usage) != "kms:rpc")
    {
        return Error{Errc::unauthenticated, "the KMS's certificate is not one for kms:rpc", {}, {}};
    }
    return Done{};
}

Task<Result<TempCa>> temp_ca(http::Client& client, std::string url)
{
    auto request = rpc(url, "GetTempCaCert", "{}");
    request.tls.verify = http::TlsClientConfig::Verify::none; // what comes back is proven by the second connection
    auto response = co_await client.send(std::move(request));
    if (!response) { co_return std::move(response).error(); }
    auto values = fields(*response, "GetTempCaCert", {"temp_ca_cert", "temp_ca_key", "ca_cert"});
    if (!values) { co_return std::move(values).error(); }
    co_return TempCa{std::move((*values)[0]), std::move((*values)[1]), std::move((*values)[2])};
}

Task<Result<AppKeys>> from_one(http::Client& client, std::string url, const BootPlan& plan,
                               const std::string& simulator)
{
    auto ca = co_await temp_ca(client, url);
    if (!ca) { co_return std::move(ca).error(); }
    auto identity = attestation::make_ratls_identity(simulator, ca->cert, ca->key);
    if (!identity) { co_return std::move(identity).error().within("client certificate"); }
    const json body{{"api_version", 1}, {"vm_config", plan.vm_config}};
    auto request = rpc(url, "GetAppKey", body.dump(-1, ' ', false, json::error_handler_t::replace));
    request.tls.verify = http::TlsClientConfig::Verify::ca;
    request.tls.ca_pem = ca->ca_cert;
    request.tls.cert_chain_pem = identity->cert_pem;
    request.tls.key_pem = identity->key_pem;
    auto response = co_await client.send(std::move(request));
    if (!response) { co_return std::move(response).error(); }
    auto usable = check_usage(response->peer_certificate_der);
    if (!usable) { co_return std::move(usable).error(); }
    auto values = fields(*response, "GetAppKey", {"ca_cert", "env_crypt_key", "os_image_hash"});
    if (!values) { co_return std::move(values).error(); }
    co_return AppKeys{std::move((*values)[0]), std::move((*values)[1]), std::move((*values)[2])};
}

bool no_answer(const Error& error) { return error.code == Errc::unavailable || error.code == Errc::deadline_exceeded; }

} // namespace

Task<Result<AppKeys>> fetch_app_keys(Loop& loop, BootPlan plan, std::string simulator, milliseconds limit)
{
    http::Client client{loop};
    const auto deadline = loop.now() + limit;
    for (;;)
    {
        std::optional<Error> first;
        bool answered = false;
        for (const std::string& configured : plan.kms_urls)
        {
            std::string url = configured;
            while (url.ends_with('/')) { url.pop_back(); }
            auto keys = co_await from_one(client, url, plan, simulator);
            if (keys) { co_return keys; }
            log::warn("no keys from kms", {{"url", url}, {"error", keys.error().message}});
            answered = answered || !no_answer(keys.error());
            if (!first) { first = std::move(keys).error().within("KMS " + url); }
        }
        if (answered || loop.now() >= deadline) { co_return std::move(*first); }
        const milliseconds pause{500};
        co_await sleep_for(loop, pause);
    }
}

} // namespace dstack::guest
