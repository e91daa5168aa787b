#include "services/deployer/vmm.hpp"
#include "bus/client/client.hpp"

namespace dstack::deployer
{

namespace
{
constexpr milliseconds short_limit{5'000};
const std::string no_trace; ///< a look is no part of anybody's work

bool refused(const Error& error)
{
    return error.message.find("connection_refused") != std::string::npos || error.message.find("not_found:") != std::string::npos;
}
} // namespace

Task<Result<std::string>> Vmm::call(std::string method, std::string body, milliseconds limit, std::string trace)
{
    const auto begun = std::chrono::steady_clock::now();
    for (;;)
    {
        http::ClientRequest request;
        request.method = "POST";
        request.url = url_ + "/prpc/" + method + "?json";
        request.headers.add("Content-Type", "application/json");
        if (!trace.empty()) { request.headers.add("traceparent", bus::child_traceparent(trace)); }
        if (!token_.empty()) { request.headers.add("Authorization", "Bearer " + token_); }
        request.body = body;
        request.timeout = limit;
        auto response = co_await client_.send(std::move(request));
        if (response && response->status == 200) { co_return std::move(response->body); }
        if (response) { co_return vmm_error(method, response->status, response->body); }
        Error error = std::move(response).error();
        const bool again = refused(error) && std::chrono::steady_clock::now() - begun < patience_;
        if (!again)
        {
            if (refused(error)) { error.details = not_sent; }
            error = std::move(error).within("the VMM does not answer: " + method);
            if (error.hint.empty()) { error.hint = "is it running? see `dstackup dev status`, or `systemctl status dstack-vmm-local`"; }
            co_return error;
        }
        co_await sleep_for(loop_, milliseconds{100});
    }
}

Task<Result<std::vector<ImageInfo>>> Vmm::images()
{
    const std::string method = "ListImages";
    const std::string body = "{}";
    auto text = co_await call(method, body, short_limit, no_trace);
    if (!text) { co_return std::move(text).error(); }
    co_return parse_images(*text);
}

Task<Result<std::vector<VmSight>>> Vmm::vms()
{
    const std::string method = "Status";
    const std::string body = "{\"brief\":true}";
    auto text = co_await call(method, body, short_limit, no_trace);
    if (!text) { co_return std::move(text).error(); }
    co_return parse_vms(*text);
}

Task<Result<std::optional<VmSight>>> Vmm::look(std::string vm_id)
{
    const std::string method = "GetInfo";
    const std::string body = id_body(vm_id);
    auto text = co_await call(method, body, short_limit, no_trace);
    if (!text) { co_return std::move(text).error(); }
    co_return parse_info(*text);
}

Task<Result<std::string>> ask_port(Loop& loop, PortMapping port, int& held)
{
    std::string host = port.host_address;
    if (host == "0.0.0.0") { host = "127.0.0.1"; }
    if (host == "::") { host = "::1"; }
    const bool six = host.find(':') != std::string::npos;
    const std::string at = (six ? "[" + host + "]" : host) + ":" + std::to_string(port.host_port);
    http::Client client{loop};
    http::ClientRequest request;
    request.url = "http://" + at + "/";
    request.headers.add("User-Agent", "dstack-deployer");
    request.connect_timeout = milliseconds{1'000};
    request.timeout = milliseconds{2'000};
    auto answer = co_await client.open(std::move(request));
    if (answer) { co_return "http " + std::to_string(answer->status()) + " from " + at; }
    const Error& error = answer.error();
    if (error.code == Errc::internal) { co_return "tcp answer (not HTTP) from " + at; } // bad_response: it has spoken
    if (error.code == Errc::resource_exhausted) { co_return "http answer from " + at; } // its fields are too many for us
    const bool waits = error.code == Errc::deadline_exceeded && error.message.find("connect_timeout") == std::string::npos;
    held = waits ? held + 1 : 0;
    if (held >= 2) { co_return "tcp connection to " + at + " is accepted and stays open"; }
    co_return std::move(answer).error();
}

} // namespace dstack::deployer
