#include "services/deployer/service.hpp"
#include "bus/schema/vm.hpp"
#include "services/deployer/app_compose.hpp"
#include "services/deployer/host.hpp"
#include "services/deployer/validate.hpp"
#include "shared/compose/compose.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/log/log.hpp"
#include "shared/state/files.hpp"
#include <algorithm>

namespace dstack::deployer
{

namespace
{
constexpr std::uint64_t probe_age_ms = 30'000; ///< an older answer of a port is asked for again
constexpr std::uint64_t start_limit_ms = 300'000; ///< for a started guest to answer, emulated and on a busy host
constexpr milliseconds connect_limit{30'000};
constexpr milliseconds say_again{1'000};
constexpr int max_unsaid = 100;

Result<Done> check_compose(std::string_view text)
{
    auto app = compose::parse_compose(text);
    if (!app) { return std::move(app).error(); }
    return Done{};
}

/// One operator's key is not another's; the process that asked does not matter.
std::string scoped_key(const bus::CallContext& context)
{
    if (context.idempotency_key.empty()) { return {}; }
    return context.caller.substr(0, context.caller.find(":pid=")) + "\n" + context.idempotency_key;
}

std::string digest_of(std::string_view request) { return crypto::to_hex(crypto::sha256(request)); }

/// Hostile text as an event's subject and name: short and printable.
std::string presentable(std::string_view text)
{
    std::string out;
    for (const char c : text.substr(0, max_name_bytes))
    {
        const auto byte = static_cast<unsigned char>(c);
        out += byte < 0x20 || byte >= 0x7f ? '?' : c;
    }
    return out;
}

AppFacts facts_from(const schema::DeployCreate& request, AppDocument document)
{
    AppFacts app;
    app.name = request.name;
    app.app_id = std::move(document.app_id);
    app.compose_hash = std::move(document.compose_hash);
    app.app_compose = std::move(document.text);
    app.wanted_image = request.image;
    app.vcpu = request.vcpu;
    app.memory_mb = request.memory_mb;
    app.disk_gb = request.disk_gb;
    app.allow = request.allow;
    app.kms = request.kms;
    app.wanted_ports = request.ports;
    app.created_ms = unix_now_ms();
    return app;
}

Operation new_operation(std::string kind, std::string name, const bus::CallContext& context)
{
    Operation operation;
    operation.id = "op-" + crypto::to_hex(crypto::random_bytes(8));
    operation.kind = std::move(kind);
    operation.name = std::move(name);
    operation.by = context.caller;
    operation.traceparent = context.traceparent;
    operation.begun_ms = unix_now_ms();
    return operation;
}

class Deployer
{
  public:
    Deployer(Daemon& daemon, Config config, state::Database& database, std::string token)
        : loop_(daemon.loop()), config_(std::move(config)), client_(loop_, {config_.bus_directory, "deployer"}),
          outbox_(loop_, database, client_), journal_(database, outbox_),
          vmm_(loop_, config_.vmm_url, std::move(token), config_.vmm_patience), host_(loop_, client_, vmm_, journal_),
          begin_(loop_), look_now_(loop_), tasks_(loop_)
    {
        host_.vm_defaults = config_.vm;
        host_.on_saved = [this](const Work& work, bool saved) { remember(work, saved); };
    }

    Task<Result<Done>> start();
    Task<> stop();

  private:
    using CreateReply = schema::DeployCreate::Reply;
    using BegunReply = schema::OperationBegun;

    void serve_commands();
    Task<Result<CreateReply>> create(schema::DeployCreate request, bus::CallContext context);
    Task<Result<CreateReply>> begin_create(AppFacts wanted, schema::DeployCreate request, bus::CallContext context);
    Task<Result<BegunReply>> change(std::string kind, std::string app, bool force, bus::CallContext context);
    Task<Result<schema::AppList::Reply>> list();
    Task<Result<schema::AppInfo::Reply>> info(std::string app);
    Task<Result<schema::DeployStatus::Reply>> status(std::string operation);
    Task<> refuse(schema::DeployCreate request, Error error, std::string traceparent);
    Task<> say_later(schema::DeployFailed fact, std::string traceparent);

    void remember(const Work& work, bool saved);
    void spawn(std::string operation, bool resumed);
    Task<> execute(std::string operation, bool resumed);
    AsyncMutex& lock_of(const std::string& name);
    Operation* active(const std::string& name);
    std::string active_kind(const std::string& name);
    void preempt_others(const std::string& name, const std::string& except);
    schema::App describe(const AppFacts& facts);
    std::vector<schema::App> all_apps();

    Task<> follow_vms();
    void heard(const bus::EventRecord& event);
    Task<> observe();
    Task<> observe_once();
    Task<> observe_app(std::string name, Look look);
    Task<> see(std::string name, AppSight sight);

    Loop& loop_;
    Config config_;
    bus::Client client_;
    bus::Outbox outbox_;
    Journal journal_;
    Vmm vmm_;
    Host host_;
    AsyncMutex begin_; ///< one decision about names at a time
    Event look_now_;
    std::map<std::string, AppFacts> apps_;
    std::map<std::string, AppSight> sights_;
    std::map<std::string, Operation> operations_; ///< those that have not ended, by id
    std::vector<std::string> order_;              ///< of operations_, as they began
    std::map<std::string, std::unique_ptr<AsyncMutex>> locks_; ///< by app; operations on one app are serialised
    int unsaid_ = 0; ///< refusals that wait for room on the disk
    Scope tasks_; ///< last: destroyed first
};

// What is in memory.

void Deployer::remember(const Work& work, bool saved)
{
    const std::string& name = work.app.name;
    if (!saved && work.operation.ended())
    {
        operations_[work.operation.id] = work.operation; // deploy.status tells it; it ends when it is on record
        return;
    }
    if (work.gone)
    {
        apps_.erase(name);
        sights_.erase(name);
        host_.probes.erase(name);
    }
    else { apps_[name] = work.app; }
    if (!work.operation.ended())
    {
        operations_[work.operation.id] = work.operation;
        return;
    }
    operations_.erase(work.operation.id);
    std::erase(order_, work.operation.id);
    host_.forget(work.operation.id);
    const bool up = work.operation.state == "succeeded" && (work.operation.kind == "create" || work.operation.kind == "start");
    if (up)
    {
        host_.probes[name] = Probe{work.operation.evidence, {}, unix_now_ms()};
        // Seen by the operation itself just now: whoever waits for its end asks before the observer looks.
        AppSight sight = sights_[name];
        sight.state = "ready";
        sight.boot_error.clear();
        sight.observed_ms = unix_now_ms();
        sight.evidence = work.operation.evidence;
        tasks_.spawn(see(name, std::move(sight)));
    }
    look_now_.set();
}

Operation* Deployer::active(const std::string& name)
{
    // The last to begin is the one that decides where the app is going: a remove.
    for (auto id = order_.rbegin(); id != order_.rend(); ++id)
    {
        const auto found = operations_.find(*id);
        if (found != operations_.end() && found->second.name == name) { return &found->second; }
    }
    return nullptr;
}

std::string Deployer::active_kind(const std::string& name)
{
    const Operation* operation = active(name);
    return operation == nullptr ? std::string{} : operation->kind;
}

AsyncMutex& Deployer::lock_of(const std::string& name)
{
    auto& lock = locks_[name];
    if (!lock) { lock = std::make_unique<AsyncMutex>(loop_); }
    return *lock;
}

schema::App Deployer::describe(const AppFacts& facts)
{
    const Operation* operation = active(facts.name);
    AppSight sight = sights_[facts.name];
    const std::string kind = operation == nullptr ? std::string{} : operation->kind;
    if (kind == "remove") { sight.state = "removing"; }
    if ((kind == "create" || kind == "start") && sight.state != "failed") { sight.state = facts.vm_id.empty() ? "deploying" : "booting"; }
    return to_app(facts, sight, operation == nullptr ? std::string_view{} : std::string_view{operation->id});
}

std::vector<schema::App> Deployer::all_apps()
{
    std::vector<const AppFacts*> sorted;
    for (const auto& [name, app] : apps_) { sorted.push_back(&app); }
    std::sort(sorted.begin(), sorted.end(),
              [](const AppFacts* a, const AppFacts* b) { return std::tie(a->created_ms, a->name) < std::tie(b->created_ms, b->name); });
    std::vector<schema::App> out;
    for (const AppFacts* app : sorted) { out.push_back(describe(*app)); }
    return out;
}

// Operations.

void Deployer::spawn(std::string operation, bool resumed) { tasks_.spawn(execute(std::move(operation), resumed)); }

Task<> Deployer::execute(std::string operation, bool resumed)
{
    const std::string name = operations_[operation].name;
    AsyncMutex& lock = lock_of(name);
    auto guard = co_await lock.lock();
    Work work;
    work.operation = operations_[operation];
    const auto app = apps_.find(name);
    const bool there = app != apps_.end();
    if (there) { work.app = app->second; }
    work.app.name = name;
    std::vector<Fact> facts;
    if (!there) // an operation that came before this one has removed it
    {
        work.gone = true;
        Operation& op = work.operation;
        op.state = op.kind == "remove" ? "succeeded" : "failed";
        op.code = to_string(Errc::not_found);
        op.reason = "the app is gone";
        op.evidence = op.reason;
        if (op.kind == "remove") { facts.emplace_back(schema::DeploySucceeded{op.id, op.kind, name, "", op.evidence, 0}); }
        else { facts.emplace_back(schema::DeployFailed{op.id, op.kind, name, op.step, op.code, op.reason, "", false}); }
        auto saved = co_await host_.save(work, facts);
        (void)saved;
        co_return;
    }
    if (resumed)
    {
        log::info("operation resumed", {{"operation", operation}, {"app", name}, {"step", work.operation.step}});
        facts.emplace_back(schema::DeployStep{operation, name, work.operation.step, "resumed", work.operation.state, 0});
        auto saved = co_await host_.save(work, facts);
        (void)saved;
    }
    OperationHost host{host_, work.operation.traceparent};
    auto end = co_await run_operation(host, std::move(work));
    log::info("operation ended", {{"operation", operation}, {"app", name}, {"kind", end.operation.kind}, {"state", end.operation.state}});
}

void Deployer::preempt_others(const std::string& name, const std::string& except)
{
    for (const auto& [id, operation] : operations_)
    {
        if (operation.name == name && id != except && operation.kind != "remove") { host_.preempt(id); }
    }
}

// Commands.

Task<> Deployer::refuse(schema::DeployCreate request, Error error, std::string traceparent)
{
    schema::DeployFailed fact{"", "create", presentable(request.name), "validate", std::string{to_string(error.code)}, error.message, error.hint, false};
    auto said = co_await journal_.say(fact, traceparent);
    if (said) { co_return; }
    log::error("event not recorded", {{"event", "deploy.failed"}, {"error", said.error().message}});
    if (unsaid_ == max_unsaid) { co_return; }
    ++unsaid_;
    tasks_.spawn(say_later(std::move(fact), std::move(traceparent)));
}

/// A refusal on a full disk is an event as well, as soon as there is room for it.
Task<> Deployer::say_later(schema::DeployFailed fact, std::string traceparent)
{
    for (;;)
    {
        co_await sleep_for(loop_, say_again);
        auto said = co_await journal_.say(fact, traceparent);
        if (said) { break; }
    }
    --unsaid_;
}

Task<Result<Deployer::CreateReply>> Deployer::create(schema::DeployCreate request, bus::CallContext context)
{
    auto valid = validate(request, &check_compose);
    if (!valid)
    {
        if (!request.dry_run) { co_await refuse(request, valid.error(), context.traceparent); }
        co_return std::move(valid).error();
    }
    AppFacts wanted = facts_from(request, build_app_document(request.name, request.compose, request.kms));
    if (request.dry_run)
    {
        CreateReply reply;
        reply.app_id = wanted.app_id;
        reply.compose_hash = wanted.compose_hash;
        reply.app_compose = wanted.app_compose;
        reply.ports = request.ports;
        co_return reply;
    }
    auto guard = co_await begin_.lock();
    auto reply = co_await begin_create(std::move(wanted), request, context);
    if (!reply) { co_await refuse(request, reply.error(), context.traceparent); }
    co_return reply;
}

Task<Result<Deployer::CreateReply>> Deployer::begin_create(AppFacts wanted, schema::DeployCreate request, bus::CallContext context)
{
    const std::string key = scoped_key(context);
    Answered answer;
    answer.request = digest_of("deploy.create " + schema::to_json(request));
    if (!key.empty())
    {
        auto before = co_await journal_.answered(key);
        if (!before) { co_return std::move(before).error(); }
        if (*before && (*before)->request != answer.request)
        {
            co_return Error{Errc::invalid_argument, "this idempotency key was used for another request", "use a new key", {}};
        }
        if (*before) { co_return schema::from_json<CreateReply>("deploy.create", (*before)->reply); }
    }
    CreateReply reply;
    reply.app_id = wanted.app_id;
    reply.compose_hash = wanted.compose_hash;
    const auto existing = apps_.find(wanted.name);
    if (existing != apps_.end())
    {
        const Operation* running = active(wanted.name);
        NameVerdict verdict = judge_name(existing->second, wanted, running);
        if (verdict.error) { co_return std::move(*verdict.error); }
        reply.already = true;
        reply.operation = running == nullptr ? std::string{} : running->id;
        reply.vm_id = existing->second.vm_id;
        reply.ports = existing->second.ports;
        co_return reply;
    }
    Work work;
    work.operation = new_operation("create", wanted.name, context);
    work.operation.step = "image";
    work.operation.ready_timeout_ms = request.ready_timeout_ms;
    work.app = std::move(wanted);
    reply.operation = work.operation.id;
    answer.reply = schema::to_json(reply);
    schema::DeployStarted fact{work.operation.id, "create", work.app.name, work.app.app_id, work.app.compose_hash, context.caller};
    auto begun = co_await journal_.begin(work, std::move(fact), key, std::move(answer));
    if (!begun) { co_return std::move(begun).error(); }
    order_.push_back(work.operation.id);
    sights_[work.app.name] = AppSight{"deploying", "no VM yet", {}, {}, {}, unix_now_ms()};
    remember(work, true);
    spawn(work.operation.id, false);
    co_return reply;
}

Task<Result<Deployer::BegunReply>> Deployer::change(std::string kind, std::string app, bool force, bus::CallContext context)
{
    auto guard = co_await begin_.lock();
    const std::string key = scoped_key(context);
    Answered answer;
    answer.request = digest_of(kind + " " + app + (force ? " force" : ""));
    if (!key.empty())
    {
        auto before = co_await journal_.answered(key);
        if (!before) { co_return std::move(before).error(); }
        if (*before && (*before)->request != answer.request)
        {
            co_return Error{Errc::invalid_argument, "this idempotency key was used for another request", "use a new key", {}};
        }
        if (*before) { co_return schema::from_json<BegunReply>("app." + kind, (*before)->reply); }
    }
    auto name = resolve(apps_, app);
    if (!name) { co_return std::move(name).error(); }
    AppFacts facts = apps_[*name];
    BegunReply reply;
    reply.vm_id = facts.vm_id;
    const Operation* running = active(*name);
    if (running != nullptr && (running->kind == kind || running->kind == "remove"))
    {
        if (running->kind != kind)
        {
            co_return Error{Errc::failed_precondition, "app '" + *name + "' is being removed", {}, {}};
        }
        reply.already = true;
        reply.operation = running->id;
        co_return reply;
    }
    if (kind != "remove" && running == nullptr)
    {
        if (facts.vm_id.empty())
        {
            co_return Error{Errc::failed_precondition, "app '" + *name + "' has no VM", "run `dstack rm " + *name + "` and deploy it again", {}};
        }
        auto vm = co_await vmm_.look(facts.vm_id);
        if (!vm) { co_return std::move(vm).error(); }
        if (!*vm) { co_return Error{Errc::not_found, "the VMM does not know the VM of '" + *name + "' any more", "run `dstack rm " + *name + "` and deploy it again", {}}; }
        const std::string status = (*vm)->status;
        const bool rests = status == "stopped" || (status == "exited" && kind == "stop" && !force);
        const bool so_already = kind == "stop" ? rests : status == "running" && (*vm)->boot_error.empty();
        if (so_already && status != "exited")
        {
            reply.already = true;
            co_return reply;
        }
    }
    Work work;
    work.operation = new_operation(kind, *name, context);
    work.operation.step = kind == "start" ? "start_vm" : kind;
    work.operation.force = force;
    work.operation.ready_timeout_ms = start_limit_ms;
    work.app = facts;
    reply.operation = work.operation.id;
    answer.reply = schema::to_json(reply);
    schema::DeployStarted fact{work.operation.id, kind, *name, facts.app_id, facts.compose_hash, context.caller};
    auto begun = co_await journal_.begin(work, std::move(fact), key, std::move(answer));
    if (!begun) { co_return std::move(begun).error(); }
    order_.push_back(work.operation.id);
    operations_[work.operation.id] = work.operation;
    if (kind == "remove") { preempt_others(*name, work.operation.id); }
    spawn(work.operation.id, false);
    co_return reply;
}

Task<Result<schema::AppList::Reply>> Deployer::list()
{
    schema::AppList::Reply reply;
    reply.apps = all_apps();
    co_return reply;
}

Task<Result<schema::AppInfo::Reply>> Deployer::info(std::string app)
{
    auto name = resolve(apps_, app);
    if (!name) { co_return std::move(name).error(); }
    schema::AppInfo::Reply reply;
    reply.app = describe(apps_[*name]);
    co_return reply;
}

Task<Result<schema::DeployStatus::Reply>> Deployer::status(std::string id)
{
    Operation operation;
    const auto running = operations_.find(id);
    if (running != operations_.end()) { operation = running->second; }
    else
    {
        auto found = co_await journal_.find(id);
        if (!found) { co_return std::move(found).error(); }
        if (!*found) { co_return Error{Errc::not_found, "there is no operation '" + presentable(id) + "'", {}, {}}; }
        operation = std::move(**found);
    }
    schema::DeployStatus::Reply reply;
    reply.operation = operation.id;
    reply.kind = operation.kind;
    reply.app = operation.name;
    reply.state = operation.state;
    reply.step = operation.state == "failed" || operation.state == "undoing" ? operation.failed_step : operation.step;
    reply.code = operation.code;
    reply.reason = operation.reason;
    reply.hint = operation.hint;
    reply.denied = operation.denied;
    const auto app = apps_.find(operation.name);
    if (app != apps_.end()) { reply.apps.push_back(describe(app->second)); }
    co_return reply;
}

void Deployer::serve_commands()
{
    client_.serve<schema::DeployCreate>([this](schema::DeployCreate request, bus::CallContext context)
                                        { return create(std::move(request), std::move(context)); });
    client_.serve<schema::AppStop>([this](schema::AppStop request, bus::CallContext context)
                                   { return change("stop", std::move(request.app), request.force, std::move(context)); });
    client_.serve<schema::AppStart>([this](schema::AppStart request, bus::CallContext context)
                                    { return change("start", std::move(request.app), false, std::move(context)); });
    client_.serve<schema::AppRemove>([this](schema::AppRemove request, bus::CallContext context)
                                     { return change("remove", std::move(request.app), false, std::move(context)); });
    client_.serve<schema::AppList>([this](schema::AppList, bus::CallContext) { return list(); });
    client_.serve<schema::AppInfo>([this](schema::AppInfo request, bus::CallContext) { return info(std::move(request.app)); });
    client_.serve<schema::DeployStatus>([this](schema::DeployStatus request, bus::CallContext)
                                        { return status(std::move(request.operation)); });
}

// Watching.

void Deployer::heard(const bus::EventRecord& event)
{
    if (event.type == schema::VmExited::type.name)
    {
        auto exit = schema::from_json<schema::VmExited>(event.type, event.data);
        std::string reason = exit ? exit->reason : std::string{"for an unknown reason"};
        const bool says_it = reason.starts_with("kernel panic: "); // the last line is of the trace then
        if (exit && !says_it && !exit->last_lines.empty()) { reason += "; its last line: " + exit->last_lines.back().substr(0, 200); }
        host_.note_exit(event.subject, std::move(reason));
    }
    if (event.type == schema::VmStarted::type.name) { host_.forget_exit(event.subject); }
    host_.pulse(event.subject);
    look_now_.set();
}

Task<> Deployer::follow_vms()
{
    for (;;)
    {
        const bus::Filter filter{"vm.", {}, {}, {}};
        const bus::From from{};
        bus::Subscription events = client_.subscribe(filter, from);
        for (;;)
        {
            auto item = co_await events.next();
            if (!item)
            {
                log::warn("subscription ended", {{"error", item.error().message}});
                break;
            }
            if (const auto* event = std::get_if<bus::EventRecord>(&*item)) { heard(*event); }
        }
        co_await sleep_for(loop_, milliseconds{1'000});
    }
}

Task<> Deployer::see(std::string name, AppSight sight)
{
    const auto app = apps_.find(name);
    if (app == apps_.end()) { co_return; }
    const AppSight before = sights_[name];
    sights_[name] = sight;
    if (before.state == sight.state && before.boot_error == sight.boot_error && before.instance_id == sight.instance_id) { co_return; }
    std::optional<schema::AppStateChanged> fact;
    if (before.state != sight.state)
    {
        fact = schema::AppStateChanged{name, app->second.app_id, app->second.vm_id, before.state, sight.state, sight.evidence};
    }
    auto saved = co_await journal_.save_sight(name, sight, std::move(fact));
    if (!saved) { log::error("journal not written", {{"app", name}, {"error", saved.error().message}}); }
}

Task<> Deployer::observe_app(std::string name, Look look)
{
    const auto app = apps_.find(name);
    if (app == apps_.end()) { co_return; }
    const AppFacts facts = app->second;
    const bool running = look.vm && look.vm->status == "running" && look.vm->boot_error.empty();
    if (!running) { host_.probes.erase(name); }
    const auto known = host_.probes.find(name);
    const bool fresh = known != host_.probes.end() && !known->second.evidence.empty() && known->second.at_ms + probe_age_ms > look.now_ms;
    const bool boots = look.operation_kind == "create" || look.operation_kind == "start"; // the operation asks itself
    const bool up = running && (look.vm->boot_progress == "done" || look.vm->boot_progress == "running");
    const PortMapping* port = first_tcp_port(facts.ports);
    if (up && !fresh && !boots && port != nullptr)
    {
        const PortMapping asked = *port;
        auto answer = co_await host_.probe(asked);
        host_.probes[name] = Probe{answer ? *answer : std::string{}, answer ? std::string{} : answer.error().message, unix_now_ms()};
    }
    const auto probe = host_.probes.find(name);
    if (probe != host_.probes.end()) { look.probe = probe->second; }
    look.operation_kind = active_kind(name);
    AppSight sight = judge_sight(facts, look);
    co_await see(std::move(name), std::move(sight));
}

Task<> Deployer::observe_once()
{
    auto vms = co_await vmm_.vms();
    Scope round{loop_};
    const auto apps = apps_;
    for (const auto& [name, facts] : apps)
    {
        Look look;
        look.vmm_answered = static_cast<bool>(vms);
        if (!vms) { look.vmm_error = vms.error().message; }
        else if (!facts.vm_id.empty())
        {
            const auto vm = std::find_if(vms->begin(), vms->end(), [&](const VmSight& one) { return one.id == facts.vm_id; });
            if (vm != vms->end()) { look.vm = *vm; }
        }
        look.exit_reason = host_.exit_reason(facts.vm_id);
        look.operation_kind = active_kind(name);
        look.now_ms = unix_now_ms();
        round.spawn(observe_app(name, std::move(look)));
    }
    co_await round.drain();
}

namespace
{
Task<Result<Done>> until_set(Event* event)
{
    co_await event->wait();
    co_return Done{};
}
} // namespace

Task<> Deployer::observe()
{
    for (;;)
    {
        look_now_.reset();
        if (!apps_.empty()) { co_await observe_once(); }
        auto asked = until_set(&look_now_);
        auto woken = co_await with_timeout(loop_, config_.observe, "observe", std::move(asked));
        (void)woken;
    }
}

// Life.

Task<Result<Done>> Deployer::start()
{
    auto loaded = co_await journal_.load();
    if (!loaded) { co_return std::move(loaded).error(); }
    for (AppFacts& app : loaded->apps) { apps_[app.name] = app; }
    sights_ = std::move(loaded->sights);
    for (const Operation& operation : loaded->unfinished)
    {
        operations_[operation.id] = operation;
        order_.push_back(operation.id);
        if (operation.kind == "remove") { preempt_others(operation.name, operation.id); }
    }
    serve_commands();
    auto connected = co_await client_.connect(connect_limit);
    if (!connected) { co_return std::move(connected).error(); }
    tasks_.spawn(outbox_.run());
    tasks_.spawn(follow_vms());
    tasks_.spawn(observe());
    const auto resumed = order_;
    for (const std::string& operation : resumed) { spawn(operation, true); }
    co_return Done{};
}

Task<> Deployer::stop()
{
    co_await client_.disconnect(milliseconds{2'000});
    tasks_.cancel(); // operations go on where they were, after the next start
}

Result<std::string> read_token(const std::string& path)
{
    if (path.empty()) { return std::string{}; }
    auto text = state::read_file(path, 4096);
    if (!text) { return text; }
    while (!text->empty() && (text->back() == '\n' || text->back() == ' ')) { text->pop_back(); }
    return text;
}
} // namespace

Task<Result<Done>> serve(Daemon& daemon, Config config)
{
    auto dirs = state::make_dirs(config.state_dir, 0750);
    if (!dirs) { co_return std::move(dirs).error(); }
    auto lock = state::FileLock::acquire(config.state_dir + "/lock", milliseconds{2'000});
    if (!lock) { co_return std::move(lock).error().within("another dstack-deployer owns " + config.state_dir); }
    auto token = read_token(config.vmm_token_file);
    if (!token) { co_return std::move(token).error().within("vmm.token_file"); }
    auto database = Journal::open(daemon.loop(), config.state_dir + "/deployer.db");
    if (!database) { co_return std::move(database).error(); }
    Deployer deployer{daemon, config, **database, std::move(*token)};
    auto started = co_await deployer.start();
    if (!started) { co_return std::move(started).error(); }
    log::info("ready", {{"bus", config.bus_directory}, {"vmm", config.vmm_url}});
    daemon.ready();
    co_await daemon.stop_requested();
    co_await deployer.stop();
    co_return Done{};
}

} // namespace dstack::deployer
