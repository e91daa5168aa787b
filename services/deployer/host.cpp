#include "services/deployer/host.hpp"
#include "shared/log/log.hpp"

namespace dstack::deployer
{

namespace
{
constexpr milliseconds call_limit{10'000};
constexpr milliseconds create_limit{60'000}; ///< the VMM copies images and starts QEMU before it answers
constexpr std::size_t max_exits = 1024;

bus::CallOptions options_for(std::string key, const std::string& trace)
{
    bus::CallOptions options;
    options.deadline = call_limit;
    options.idempotency_key = std::move(key);
    if (!trace.empty()) { options.traceparent = trace; }
    return options;
}

Task<Result<Done>> wait_for(Event* event)
{
    co_await event->wait();
    co_return Done{};
}
} // namespace

std::uint64_t unix_now_ms()
{
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    return static_cast<std::uint64_t>(std::chrono::duration_cast<milliseconds>(now).count());
}

std::uint64_t Host::now_ms() { return unix_now_ms(); }

Event& Host::event_of(const std::string& vm_id)
{
    auto& event = changes_[vm_id];
    if (!event) { event = std::make_unique<Event>(loop_); }
    return *event;
}

void Host::pulse(const std::string& vm_id)
{
    const auto found = changes_.find(vm_id);
    if (found != changes_.end()) { found->second->set(); } // else nobody has ever asked for it
}

void Host::note_exit(const std::string& vm_id, std::string reason)
{
    if (exits_.size() >= max_exits) { exits_.erase(exits_.begin()); }
    exits_[vm_id] = std::move(reason);
}

void Host::preempt(const std::string& operation)
{
    preempted_.insert(operation);
    for (const auto& [vm_id, event] : changes_) { event->set(); }
}

Task<> Host::wait_change(std::string vm_id, milliseconds limit)
{
    if (vm_id.empty())
    {
        co_await sleep_for(loop_, limit);
        co_return;
    }
    Event* event = &event_of(vm_id); // entries are never removed while the service runs
    auto wait = wait_for(event);
    auto woken = co_await with_timeout(loop_, limit, "wait", std::move(wait));
    if (woken) { event->reset(); }
}

Task<Result<Done>> Host::save(Work work, std::vector<Fact> facts)
{
    auto saved = co_await journal_.save(work, facts);
    if (!saved)
    {
        log::error("journal not written", {{"operation", work.operation.id}, {"error", saved.error().message}});
    }
    if (on_saved) { on_saved(work, static_cast<bool>(saved)); }
    co_return saved;
}

Task<Result<std::vector<schema::Lease>>> Host::reserve(std::string owner, std::string key, std::vector<schema::LeaseWish> wishes,
                                                        std::string trace)
{
    schema::LeaseReserve request;
    request.key = key;
    request.owner = owner;
    request.wishes = std::move(wishes);
    auto options = options_for(key + ":reserve", trace);
    auto reply = co_await client_.call(std::move(request), std::move(options));
    if (!reply) { co_return std::move(reply).error(); }
    co_return std::move(reply->leases);
}

Task<Result<Done>> Host::bind(std::string owner, std::string trace)
{
    schema::LeaseBind request;
    request.owner = owner;
    auto options = options_for({}, trace);
    auto reply = co_await client_.call(std::move(request), std::move(options));
    if (!reply) { co_return std::move(reply).error(); }
    co_return Done{};
}

Task<Result<Done>> Host::release(std::string owner, std::string reason, std::string trace)
{
    schema::LeaseRelease request;
    request.owner = owner;
    request.reason = reason;
    auto options = options_for({}, trace);
    auto reply = co_await client_.call(std::move(request), std::move(options));
    if (!reply) { co_return std::move(reply).error(); }
    co_return Done{};
}

Task<Result<bool>> Host::allow(std::string app_id, std::string compose_hash, std::string reason, std::string key, std::string trace)
{
    schema::AuthAllowApp request;
    request.app_id = app_id;
    request.compose_hash = compose_hash;
    request.reason = reason;
    auto options = options_for(key, trace);
    auto reply = co_await client_.call(std::move(request), std::move(options));
    if (!reply) { co_return std::move(reply).error(); }
    co_return reply->changed;
}

Task<Result<Done>> Host::revoke(std::string app_id, std::string compose_hash, std::string reason, std::string trace)
{
    schema::AuthRevokeApp request;
    request.app_id = app_id;
    request.compose_hash = compose_hash;
    request.reason = reason;
    auto options = options_for({}, trace);
    auto reply = co_await client_.call(std::move(request), std::move(options));
    if (!reply) { co_return std::move(reply).error(); }
    co_return Done{};
}

Task<Result<std::optional<schema::Decision>>> Host::latest_decision(std::string app_id)
{
    schema::AuthDecisions request;
    request.app_id = app_id;
    request.limit = 1;
    auto options = options_for({}, {});
    auto reply = co_await client_.call(std::move(request), std::move(options));
    if (!reply) { co_return std::move(reply).error(); }
    if (reply->decisions.empty()) { co_return std::optional<schema::Decision>{}; }
    co_return std::optional<schema::Decision>{std::move(reply->decisions.front())};
}

Task<Result<std::vector<ImageInfo>>> Host::images() { return vmm_.images(); }
Task<Result<std::vector<VmSight>>> Host::vms() { return vmm_.vms(); }

Task<Result<std::optional<VmSight>>> Host::look(std::string vm_id)
{
    event_of(vm_id); // what happens from here on is not missed
    return vmm_.look(std::move(vm_id));
}

Task<Result<std::string>> Host::create_vm(AppFacts app, std::string trace)
{
    const std::string method = "CreateVm";
    auto body = create_vm_body(app, vm_defaults);
    auto answer = co_await vmm_.call(method, std::move(body), create_limit, std::move(trace));
    if (!answer) { co_return std::move(answer).error(); }
    co_return parse_id(*answer);
}

Task<Result<Done>> Host::vm_call(std::string method, std::string vm_id, std::string trace)
{
    auto body = id_body(vm_id);
    auto answer = co_await vmm_.call(method, std::move(body), create_limit, std::move(trace));
    if (!answer) { co_return std::move(answer).error(); }
    co_return Done{};
}

std::string Host::exit_reason(std::string vm_id)
{
    const auto found = exits_.find(vm_id);
    return found == exits_.end() ? std::string{} : found->second;
}

Task<Result<std::string>> Host::probe(PortMapping port)
{
    const std::string key = to_text(port);
    int held = held_[key];
    auto answer = co_await ask_port(loop_, port, held);
    if (answer || held == 0) { held_.erase(key); }
    else { held_[key] = held; }
    co_return answer;
}

} // namespace dstack::deployer
