#include "services/kms-local/server.hpp"
#include "bus/schema/kms.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/log/log.hpp"
#include "shared/state/files.hpp"
#include <ctime>

namespace dstack::kms
{

namespace
{

constexpr std::size_t max_body = 1024 * 1024; // upstream: 10 MiB; the largest request here is a vm_config
constexpr std::size_t max_reply = 256 * 1024; // of the webhook
constexpr std::string_view user_agent = "dstack-kms/" DSTACK_VERSION " (kms-local; simulated attestation)";

http::Limits limits(const Config& config)
{
    http::Limits out;
    out.max_body_bytes = max_body;
    out.max_connections = 256;
    out.handler_timeout = config.request_timeout;
    return out;
}

bool counts_attestation(std::string_view method)
{
    return method == "GetAppKey" || method == "GetKmsKey" || method == "SignCert";
}

Error failed(std::string message) { return {Errc::failed_precondition, std::move(message), {}, {}}; }

http::Response with_version(http::Response response)
{
    response.headers.set("X-App-Version", "v" DSTACK_VERSION);
    return response;
}

http::Response answer(const Result<std::string>& result, bool json)
{
    if (result && json) { return http::json_response(200, *result); }
    http::Response out;
    out.status = 400;
    const std::string message = result ? "the embedded KMS answers in JSON only: add ?json" : result.error().message;
    out.headers.set("Content-Type", json ? "application/json" : "application/octet-stream");
    out.body = json ? error_json(message) : error_binary(message);
    return out;
}

} // namespace

Server::Server(Loop& loop, const Config& config, Loaded loaded, bus::Publisher& events)
    : loop_(loop), config_(config), loaded_(std::move(loaded)), events_(events), webhook_(loop),
      http_(loop, limits(config), [this](http::Request request) { return handle(std::move(request)); })
{
}

Result<Done> Server::listen()
{
    auto rpc = make_rpc_identity(loaded_.keys, config_.dns_names, config_.ip_addresses);
    if (!rpc) { return std::move(rpc).error(); }
    http::TlsServerConfig tls;
    tls.cert_chain_pem = std::move(rpc->chain_pem);
    tls.key_pem = std::move(rpc->key_pem);
    tls.client_certificate = http::TlsServerConfig::ClientCertificate::request_ca;
    tls.client_ca_pem = loaded_.keys.temp_ca_cert_pem;
    if (auto done = http_.use_tls(tls); !done) { return std::move(done).error().within("TLS"); }
    return http_.listen_tcp(config_.listen, config_.port);
}

Task<> Server::drain(milliseconds limit) { co_await http_.drain(limit); }

Task<http::Response> Server::handle(http::Request request)
{
    const bool reads = request.method == "GET" || request.method == "HEAD";
    const auto path = request.path();
    if (reads && path == "/health") { co_return with_version(http::text_response(200, "OK")); }
    if (reads && path == "/metrics")
    {
        std::string text =
            "# TYPE dstack_kms_attestation_requests_total counter\ndstack_kms_attestation_requests_total " +
            std::to_string(attestation_requests_) +
            "\n# TYPE dstack_kms_attestation_failures_total counter\ndstack_kms_attestation_failures_total " +
            std::to_string(attestation_failures_) + "\n";
        co_return with_version(http::text_response(200, std::move(text)));
    }
    const auto found = method_of(path);
    if (!found || (!reads && request.method != "POST"))
    {
        co_return with_version(http::text_response(404, "not found\n"));
    }
    const bool json = is_json_mode(request.method, request.query(), request.headers.get("Content-Type"));
    std::string method{*found};
    std::string body = reads ? json_of_query(request.query()) : request.body;
    if (!json) { body.clear(); }
    const bool counted = counts_attestation(method);
    attestation_requests_ += counted ? 1 : 0;
    if (!json)
    {
        const Result<std::string> refused = failed("the embedded KMS speaks JSON only: add ?json");
        attestation_failures_ += counted ? 1 : 0;
        co_return with_version(answer(refused, false));
    }
    std::string name = method;
    std::string cert = request.peer_certificate_der;
    auto result = co_await call(std::move(method), std::move(body), std::move(cert));
    if (!result)
    {
        attestation_failures_ += counted ? 1 : 0;
        log::warn("request refused", {{"method", name}, {"peer", request.peer}, {"error", result.error().message}});
    }
    co_return with_version(answer(result, true));
}

Task<Result<std::string>> Server::call(std::string method, std::string body, std::string client_cert_der)
{
    if (method == "GetMeta") { co_return co_await get_meta(); }
    if (method == "GetTempCaCert")
    {
        co_return encode(
            TempCa{loaded_.keys.temp_ca_cert_pem, loaded_.keys.temp_ca_key.pkcs8_pem(), loaded_.keys.ca_cert_pem});
    }
    if (method == "GetAppEnvEncryptPubKey") { co_return env_key(body); }
    if (method == "GetAppKey") { co_return co_await get_app_key(std::move(body), std::move(client_cert_der)); }
    if (method == "GetKmsKey" || method == "SignCert")
    {
        co_return failed(method + " is not served by the embedded KMS of a development host");
    }
    co_return failed("Service not found: " + method);
}

Task<Result<std::string>> Server::get_meta()
{
    http::ClientRequest request;
    request.url = config_.auth_url;
    request.timeout = config_.auth_timeout;
    request.max_response_bytes = max_reply;
    request.headers.set("User-Agent", user_agent.data());
    auto response = co_await webhook_.send(std::move(request));
    if (!response) { co_return std::move(response).error().within("auth api " + config_.auth_url); }
    auto info = parse_auth_info(config_.auth_url, response->status, response->body);
    if (!info) { co_return std::move(info).error(); }
    co_return encode(Meta{loaded_.keys.ca_cert_pem, loaded_.identity.k256_pubkey, info->gateway_app_id,
                          info->kms_contract_address, info->chain_id, info->app_implementation});
}

Result<std::string> Server::env_key(std::string_view body) const
{
    const auto request = parse_app_id_request(body);
    if (!request) { return request.error(); }
    const auto key = env_public_key(loaded_.keys, request->app_id, static_cast<std::uint64_t>(std::time(nullptr)));
    if (!key) { return key.error(); }
    return encode(*key);
}

Task<Result<std::string>> Server::get_app_key(std::string body, std::string client_cert_der)
{
    auto request = parse_app_key_request(body);
    if (!request) { co_return std::move(request).error(); }
    if (request->api_version > 1)
    {
        co_return failed("Unsupported API version: " + std::to_string(request->api_version));
    }
    auto verified = co_await attested(std::move(client_cert_der));
    if (!verified)
    {
        const attestation::BootInfo unknown;
        refused(unknown, verified.error().message);
        co_return std::move(verified).error().within("App not allowed");
    }
    const attestation::BootInfo boot = verified->boot_info;
    auto image = check_image(verified->claims, request->vm_config);
    if (!image)
    {
        refused(boot, image.error().message);
        co_return std::move(image).error().within("App not allowed: Failed to verify os image hash");
    }
    auto reply = co_await ask(boot);
    if (!reply)
    {
        refused(boot, reply.error().message);
        co_return std::move(reply).error().within("App not allowed");
    }
    if (!reply->is_allowed)
    {
        refused(boot, reply->reason);
        co_return Error{Errc::permission_denied, "App not allowed: Boot denied: " + reply->reason, {}, {}};
    }
    auto keys = release(loaded_.keys, boot, reply->gateway_app_id);
    if (!keys) { co_return std::move(keys).error(); }
    log::info("keys released", {{"app", boot.app_id},
                                {"instance", boot.instance_id},
                                {"compose_hash", boot.compose_hash},
                                {"simulated", true}});
    events_.emit(schema::KeyReleased{boot.app_id, boot.instance_id, boot.compose_hash, true});
    co_return encode(*keys);
}

Task<Result<attestation::Verified>> Server::attested(std::string client_cert_der)
{
    if (client_cert_der.empty()) { co_return failed("No attestation provided"); }
    const std::string path = config_.tee_host_key_file;
    auto read = [path] { return state::read_file(path, 4096); };
    auto text = co_await offload(loop_, read);
    if (!text)
    {
        auto error = std::move(text).error().within("key of the simulated TEE");
        error.hint = "dstack-vmm-local writes it when it first starts";
        co_return error;
    }
    const auto host = parse_host_key(*text);
    if (!host) { co_return Error{host.error()}.within(path); }
    auto verified = attestation::verify_ratls_certificate(*host, crypto::view(client_cert_der));
    if (!verified) { co_return std::move(verified).error(); }
    if (!*verified) { co_return failed("No attestation provided"); }
    co_return std::move(**verified);
}

Task<Result<AuthReply>> Server::ask(attestation::BootInfo boot)
{
    const std::string url = boot_auth_url(config_.auth_url);
    http::ClientRequest request;
    request.method = "POST";
    request.url = url;
    request.timeout = config_.auth_timeout;
    request.max_response_bytes = max_reply;
    request.headers.set("Content-Type", "application/json");
    request.headers.set("User-Agent", user_agent.data());
    request.body = attestation::to_json(boot);
    auto response = co_await webhook_.send(std::move(request));
    if (!response) { co_return std::move(response).error().within("auth api " + url); }
    co_return parse_auth_reply(url, response->status, response->body);
}

void Server::refused(const attestation::BootInfo& boot, std::string_view reason)
{
    events_.emit(schema::KeyRefused{boot.app_id, boot.instance_id, boot.compose_hash, std::string{reason}});
}

} // namespace dstack::kms
