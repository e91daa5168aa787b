#include "services/vmm-local/rpc.hpp"
#include "services/vmm-local/vmm.hpp"
#include "shared/crypto/bytes.hpp"
#include "shared/log/log.hpp"

// The host API of a guest (dstack-protocol.md C.4, C.6): one listener per VM on loopback, which the guest reaches as
// 10.0.2.2. Other guests reach that port too, so the path holds a secret that only this guest's share has.
namespace dstack::vmm
{

namespace
{
constexpr std::uint64_t notify_window_ms = 60'000;
constexpr std::uint32_t notify_per_window = 240;

http::Response rpc_error(std::string_view message) { return http::json_response(400, error_body(message)); }
} // namespace

Result<Done> Vmm::open_host_api(Vm& vm)
{
    if (vm.host_api) { return Done{}; }
    http::Limits limits;
    limits.max_header_bytes = 8 * 1024;
    limits.max_body_bytes = 1024 * 1024;
    limits.max_connections = 16;
    limits.handler_timeout = milliseconds{30'000};
    Vm* const owner = &vm; // owns the server, and so outlives its handlers
    auto server = std::make_unique<http::Server>(loop_, limits, [this, owner](http::Request request)
                                                 { return answer_guest(owner, std::move(request)); });
    server->plan_body([](const http::Request&) { return http::BodyPlan{1024 * 1024, true}; });
    auto listening = server->listen_tcp("127.0.0.1", vm.state.host_api_port);
    // A guest that runs knows its port; one that is about to start can be told another.
    if (!listening && !vm.running() && vm.state.host_api_port != 0) { listening = server->listen_tcp("127.0.0.1", 0); }
    if (!listening) { return std::move(listening).error().within("host api"); }
    vm.state.host_api_port = server->port();
    vm.host_api = std::move(server);
    return Done{};
}

Task<> Vmm::reopen_host_api(VmPtr vm)
{
    bool open = false;
    while (!open && vm->running() && !vm->removing)
    {
        auto opened = open_host_api(*vm);
        open = static_cast<bool>(opened);
        if (!open)
        {
            log::error("adopted guest's host api not reopened, trying again",
                       {{"vm", vm->manifest.id}, {"port", vm->state.host_api_port}, {"error", opened.error().message}});
            co_await sleep_for(loop_, milliseconds{1'000});
        }
    }
}

void Vmm::refuse_notify(Vm& vm, std::string reason)
{
    emit(vm, schema::VmNotifyRefused{vm.manifest.id, vm.manifest.name, std::move(reason)});
}

Task<http::Response> Vmm::answer_guest(Vm* owner, http::Request request)
{
    VmPtr vm = find(owner->manifest.id);
    if (!vm || vm.get() != owner) { co_return rpc_error("VM not found"); }
    const std::string prefix = "/" + vm->state.host_api_token + "/api/";
    const std::string path{request.path()};
    if (path.size() <= prefix.size() || !crypto::constant_time_equal(crypto::view(path.substr(0, prefix.size())), crypto::view(prefix)))
    {
        co_return http::text_response(404, "no such path\n");
    }
    const std::string method = path.substr(prefix.size());
    std::string body;
    bool more = request.stream != nullptr;
    while (more && body.size() <= max_notify_bytes)
    {
        auto piece = co_await request.stream->read();
        if (!piece) { co_return http::json_response(400, error_body(piece.error().message)); }
        more = !piece->empty();
        body += *piece;
    }
    if (method == "Info")
    {
        co_return http::json_response(200, R"({"name":"dstack VMM","version":")" DSTACK_VERSION R"("})");
    }
    if (method != "Notify") { co_return rpc_error("Service not found: " + method); }

    const std::uint64_t now = now_ms();
    if (now - vm->notify_window_ms > notify_window_ms)
    {
        vm->notify_window_ms = now;
        vm->notify_count = 0;
    }
    if (++vm->notify_count > notify_per_window)
    {
        if (vm->notify_count == notify_per_window + 1) { refuse_notify(*vm, "more than 240 notifications in a minute"); }
        co_return http::json_response(429, error_body("too many notifications"));
    }
    if (body.size() > max_notify_bytes)
    {
        refuse_notify(*vm, "over 4096 bytes");
        co_return rpc_error("notification of more than 4096 bytes refused");
    }
    auto decoded = decode_notify(body);
    if (!decoded)
    {
        refuse_notify(*vm, decoded.error().message);
        co_return rpc_error(decoded.error().message);
    }
    auto done = co_await notify(vm, decoded->event, decoded->payload);
    if (!done) { co_return rpc_error(done.error().message); }
    co_return http::json_response(200, "null");
}

Task<Result<Done>> Vmm::notify(VmPtr vm, std::string event, std::string payload)
{
    const NotifyEffect effect = judge_notify(event, payload);
    using Kind = NotifyEffect::Kind;
    if (effect.kind == Kind::instance_info)
    {
        auto write = [dir = vm->dir, payload] { return write_instance_info(dir, payload); };
        auto written = co_await offload(loop_, write);
        if (!written) { co_return written; }
        auto id = instance_id_of(payload);
        if (id) { vm->instance_id = std::move(*id); }
    }
    const std::uint64_t now = now_ms();
    apply_notify(vm->state, effect, event, payload, now);
    auto saved = co_await save(vm);
    if (!saved) { co_return saved; }
    const std::string& id = vm->manifest.id;
    const std::string& name = vm->manifest.name;
    switch (effect.kind)
    {
    case Kind::progress: emit(*vm, schema::VmBootProgress{id, name, payload}); break;
    case Kind::ready:
        emit(*vm, schema::VmBootProgress{id, name, payload});
        emit(*vm, schema::VmReady{id, name, vm->instance_id, now - vm->state.started_at_ms});
        break;
    case Kind::error: emit(*vm, schema::VmBootError{id, name, payload}); break;
    case Kind::powering_off:
        if (vm->state.stop_asked.empty()) { emit(*vm, schema::VmStopping{id, name, "guest"}); }
        break;
    case Kind::refused: refuse_notify(*vm, effect.refused); break;
    case Kind::error_cleared:
    case Kind::shutdown:
    case Kind::instance_info: break;
    }
    co_await events_.kept(keep_limit);
    co_return Done{};
}

} // namespace dstack::vmm
