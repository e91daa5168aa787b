#include "services/vmm-local/vmm.hpp"
#include "shared/attestation/simulated.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/log/log.hpp"
#include "shared/state/files.hpp"
#include <array>
#include <chrono>
#include <csignal>
#include <ctime>
#include <nlohmann/json.hpp>
#include <sys/stat.h>

namespace dstack::vmm
{

std::uint64_t now_ms()
{
    using namespace std::chrono;
    return static_cast<std::uint64_t>(duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count());
}

std::string now_text()
{
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    gmtime_r(&now, &parts);
    std::array<char, 32> out{};
    std::strftime(out.data(), out.size(), "%Y-%m-%dT%H:%M:%SZ", &parts);
    return out.data();
}

Vmm::Vmm(Loop& loop, const Config& config, bus::Publisher& events)
    : loop_(loop), config_(config), events_(events), probe_(loop, config), image_lock_(loop), operations_(loop), background_(loop)
{
}

Vmm::~Vmm()
{
    background_.cancel();
    operations_.cancel();
}

VmPtr Vmm::find(std::string_view id) const
{
    const auto it = vms_.find(id);
    return it == vms_.end() || it->second->creating ? nullptr : it->second;
}

std::optional<std::string> Vmm::dir_of(std::string_view id) const
{
    const auto vm = find(id);
    return vm ? std::optional<std::string>{vm->dir} : std::nullopt;
}

namespace
{
struct Opened
{
    std::string seed;
    std::vector<FoundVm> found;
};

Result<Opened> open_state(const Config& config)
{
    Opened out;
    auto done = state::make_dirs(config.state_dir, 0755);
    if (done) { done = state::make_dirs(config.vms_dir(), 0700); }
    // 0750: the log collector, in our group, finds the VMs there.
    if (done && ::chmod(config.vms_dir().c_str(), 0750) != 0) { done = errno_error("chmod " + config.vms_dir(), errno); }
    if (!done) { return std::move(done).error(); }
    if (config.tee_simulator)
    {
        auto keys = load_host_keys(config.state_dir + "/tee-host.seed", config.key_file());
        if (!keys) { return std::move(keys).error(); }
        out.seed = std::move(keys->seed);
    }
    auto found = scan_vms(config.vms_dir(), true);
    if (!found) { return std::move(found).error(); }
    out.found = std::move(*found);
    return out;
}
} // namespace

Task<Result<Done>> Vmm::open()
{
    auto read = [config = config_] { return open_state(config); };
    auto opened = co_await offload(loop_, read);
    if (!opened) { co_return std::move(opened).error(); }
    host_seed_ = std::move(opened->seed);
    for (auto& found : opened->found) { take_over(std::move(found)); }
    background_.spawn(rotate_logs());
    co_return Done{};
}

Task<> Vmm::close(milliseconds limit)
{
    const auto deadline = loop_.now() + limit;
    while (operations_.size() > 0 && loop_.now() < deadline) { co_await sleep_for(loop_, milliseconds{5}); }
    if (operations_.size() > 0) { log::warn("operations cut short by the stop", {{"count", operations_.size()}}); }
    background_.cancel();
    operations_.cancel();
    for (auto& [id, vm] : vms_) { vm->host_api.reset(); }
}

void Vmm::take_over(FoundVm found)
{
    if (found.damage)
    {
        // Never removed nor started on a guess; whatever runs goes on.
        log::error("vm not loaded", {{"vm", found.id}, {"error", found.damage->message}});
        return;
    }
    auto vm = std::make_shared<Vm>(loop_);
    vm->manifest = std::move(found.manifest);
    vm->state = std::move(found.state);
    vm->dir = std::move(found.dir);
    vm->compose_hash = std::move(found.compose_hash);
    vm->removing = found.removing;
    auto instance = instance_id_of(found.instance_info.empty() ? "{}" : found.instance_info);
    if (instance) { vm->instance_id = std::move(*instance); }
    auto image = load_image(config_.image_dir, vm->manifest.image);
    if (image) { vm->image_version = image->version; }
    vms_[vm->manifest.id] = vm;

    if (found.process)
    {
        auto watch = process::PidWatch::open(loop_, *found.process);
        if (watch)
        {
            vm->watch.emplace(std::move(*watch));
            vm->ended.reset();
            ++vm->run;
            if (!vm->removing)
            {
                emit(*vm, schema::VmAdopted{vm->manifest.id, vm->manifest.name,
                                               static_cast<std::uint64_t>(found.process->pid), vm->dir + "/serial.log"});
                background_.spawn(reopen_host_api(vm));
                background_.spawn(adopt_monitor(vm));
            }
            background_.spawn(follow_process(vm));
        }
        else if (!vm->removing)
        {
            vm->ended.reset(); // a start waits until this exit is recorded
            background_.spawn(record_exit(vm, std::string{}));
        }
    }
    else if (!vm->removing) { schedule_restart(vm); }
    if (vm->removing) { background_.spawn(finish_removal(vm)); }
}

Task<Result<Image>> Vmm::load_verified(std::string name)
{
    auto guard = co_await image_lock_.lock(); // the digests' memory is used by one thread at a time
    auto load = [directory = config_.image_dir, name = std::move(name), digests = digests_]() -> Result<Image>
    {
        auto image = load_image(directory, name);
        if (!image) { return image; }
        auto verified = digests->verify(*image);
        if (!verified) { return std::move(verified).error(); }
        return image;
    };
    auto image = co_await offload(loop_, load);
    co_return image;
}

// --- create and remove ---------------------------------------------------------------------------------------------

namespace
{
/// The seed is drawn once: the instance id stays the same over restarts, and the VMM can vouch for it.
struct Instance
{
    std::string info;
    std::string id;
};
Instance make_instance(const Manifest& manifest, std::string_view compose)
{
    Instance out;
    if (manifest.app_id.empty()) { return out; }
    const auto app_id = crypto::from_hex(manifest.app_id);
    const auto document = nlohmann::json::parse(compose, nullptr, false);
    const auto none = document.is_object() ? document.find("no_instance_id") : document.end();
    const bool without = document.is_object() && none != document.end() && *none == true;
    if (!app_id || without)
    {
        out.info = first_instance_info(manifest);
        return out;
    }
    const auto seed = crypto::random_bytes(20);
    out.id = attestation::make_instance_id(seed, *app_id);
    nlohmann::ordered_json info;
    info["instance_id_seed"] = crypto::to_hex(seed);
    info["instance_id"] = out.id;
    info["app_id"] = manifest.app_id;
    out.info = info.dump();
    return out;
}

bool same_definition(Manifest a, const Manifest& b)
{
    a.id = b.id;
    a.created_at_ms = b.created_at_ms;
    return a == b;
}

Error no_room(Error error)
{
    if (error.code != Errc::resource_exhausted) { return error; }
    return Error{error.code, "No space left on device: the VM was not created: " + error.message,
                 "free space on the file system of the VMM's state directory", {}};
}
} // namespace

Task<Result<std::string>> Vmm::create(VmConfiguration request)
{
    auto operation = do_create(std::move(request));
    auto outliving = outlive_caller(std::move(operation));
    co_return co_await outliving;
}

Task<Result<std::string>> Vmm::do_create(VmConfiguration request)
{
    HostFacts host{config_.port_mapping, config_.port_address, config_.port_ranges, config_.tee_simulator, {}};
    for (const auto& [id, vm] : vms_)
    {
        if (!request.vm_id || id != *request.vm_id) { host.others.push_back(&vm->manifest); }
    }
    auto manifest = plan_vm(request, host);
    if (!manifest) { co_return std::move(manifest).error(); }
    std::string hash = compose_hash(request.compose_file);
    if (request.vm_id)
    {
        if (const auto known = vms_.find(*request.vm_id); known != vms_.end())
        {
            const Vm& vm = *known->second;
            if (!vm.removing && !vm.creating && same_definition(*manifest, vm.manifest) && vm.compose_hash == hash)
            {
                co_return *request.vm_id;
            }
            co_return Error{Errc::already_exists, "VM " + *request.vm_id + " already exists with another definition", {}, {}};
        }
    }

    auto vm = std::make_shared<Vm>(loop_);
    vm->manifest = std::move(*manifest);
    vm->manifest.id = request.vm_id ? *request.vm_id : make_uuid();
    vm->manifest.created_at_ms = now_ms();
    vm->compose_hash = std::move(hash);
    vm->dir = config_.vms_dir() + "/" + vm->manifest.id;
    vm->trace = request.trace;
    vm->creating = true;
    vms_[vm->manifest.id] = vm; // from here on its ports are taken
    struct Forget               // unless it is complete at the end
    {
        Vmm& vmm;
        const VmPtr& vm;
        ~Forget()
        {
            if (vm->creating) { vmm.vms_.erase(vm->manifest.id); }
        }
    } forget{*this, vm};
    auto guard = co_await vm->lock.lock();

    auto image = co_await load_verified(vm->manifest.image);
    if (!image) { co_return std::move(image).error().within("Failed to load VM"); }
    vm->image_version = image->version;
    auto loads = check_app_compose(request.compose_file);
    if (!loads) { co_return std::move(loads).error().within("Failed to load VM"); }

    Instance instance = make_instance(vm->manifest, request.compose_file);
    vm->instance_id = instance.id;
    vm->state.started = !request.stopped;
    vm->state.host_api_token = crypto::to_hex(crypto::random_fixed<16>());
    VmFiles files{vm->manifest, vm->state, std::move(request.compose_file), std::move(instance.info),
                  std::move(request.encrypted_env), std::move(request.user_config)};
    auto write = [dir = config_.vms_dir(), files = std::move(files)] { return create_vm_dir(dir, files); };
    auto written = co_await offload(loop_, write);
    if (!written) { co_return no_room(std::move(written).error()); }
    vm->creating = false;
    emit(*vm, schema::VmCreated{vm->manifest.id, vm->manifest.name, vm->manifest.app_id, vm->compose_hash, vm->manifest.image,
                                   vm->manifest.vcpu, vm->manifest.memory, vm->dir + "/serial.log"});
    const std::string id = vm->manifest.id;
    if (request.stopped) { co_return id; }
    auto started = co_await start_locked(vm, false);
    if (started) { co_return id; }
    Error error = no_room(std::move(started).error());
    auto undone = co_await undo_create(vm);
    if (!undone) { log::error("vm not removed after a failed start", {{"vm", id}, {"error", undone.error().message}}); }
    co_return error;
}

void Vmm::note_trace(std::string_view id, std::string_view trace)
{
    const auto vm = find(id);
    if (vm && trace.size() == 55) { vm->trace = trace; }
}

Task<Result<Done>> Vmm::undo_create(VmPtr vm)
{
    if (vm->removing) { co_return Done{}; } // somebody else is at it
    vm->removing = true;
    if (vm->running()) { (void)vm->watch->kill(SIGKILL); }
    auto ended = co_await await_end(vm, milliseconds{10'000});
    if (!ended) { co_return ended; }
    auto remove = [dir = config_.vms_dir(), id = vm->manifest.id] { return remove_vm_dir(dir, id); };
    auto removed = co_await offload(loop_, remove);
    if (!removed)
    {
        background_.spawn(finish_removal(vm));
        co_return removed;
    }
    vms_.erase(vm->manifest.id);
    vm->host_api.reset();
    emit(*vm, schema::VmRemoved{vm->manifest.id, vm->manifest.name});
    co_return Done{};
}

Task<Result<Done>> Vmm::remove(std::string id)
{
    auto operation = do_remove(std::move(id));
    auto outliving = outlive_caller(std::move(operation));
    co_return co_await outliving;
}

Task<Result<Done>> Vmm::do_remove(std::string id)
{
    auto vm = find(id);
    if (!vm) { co_return Error{Errc::not_found, "VM not found", {}, {}}; }
    if (vm->removing) { co_return Done{}; }
    vm->removing = true; // what is in flight for this VM gives up at its next step
    auto mark = [dir = vm->dir] { return mark_removing(dir); };
    auto marked = co_await offload(loop_, mark);
    if (!marked)
    {
        vm->removing = false;
        co_return marked;
    }
    background_.spawn(finish_removal(vm));
    co_return Done{};
}

Task<> Vmm::finish_removal(VmPtr vm)
{
    constexpr milliseconds again{2'000};
    const std::string id = vm->manifest.id;
    if (vm->state.stop_asked.empty()) { vm->state.stop_asked = "stop"; }
    if (vm->running()) { (void)vm->watch->kill(SIGKILL); } // before the lock: a start that waits for the guest ends at once
    auto guard = co_await vm->lock.lock();
    bool gone = false;
    while (!gone)
    {
        if (vm->running()) { (void)vm->watch->kill(SIGKILL); }
        auto ended = co_await await_end(vm, milliseconds{10'000});
        if (ended)
        {
            auto remove = [dir = config_.vms_dir(), id] { return remove_vm_dir(dir, id); };
            auto removed = co_await offload(loop_, remove);
            gone = static_cast<bool>(removed);
            if (!gone) { log::error("vm not removed yet", {{"vm", id}, {"error", removed.error().message}}); }
        }
        else { log::error("vm does not end", {{"vm", id}, {"error", ended.error().message}}); }
        if (!gone) { co_await sleep_for(loop_, again); }
    }
    vms_.erase(id);
    vm->host_api.reset();
    emit(*vm, schema::VmRemoved{id, vm->manifest.name});
}

// --- reading -------------------------------------------------------------------------------------------------------

Task<Result<Vmm::Reloaded>> Vmm::reload()
{
    auto scan = [dir = config_.vms_dir()] { return scan_vms(dir, false); };
    auto found = co_await offload(loop_, scan);
    if (!found) { co_return std::move(found).error(); }
    Reloaded out;
    std::map<std::string, bool> there;
    for (auto& one : *found)
    {
        there[one.id] = true;
        if (vms_.contains(one.id) || one.damage) { continue; }
        take_over(std::move(one));
        ++out.loaded;
    }
    for (auto it = vms_.begin(); it != vms_.end();)
    {
        const Vm& vm = *it->second;
        if (!there.contains(it->first) && !vm.creating && !vm.removing && !vm.watch && !it->second->lock.locked())
        {
            it = vms_.erase(it);
            ++out.removed;
        }
        else { ++it; }
    }
    co_return out;
}

Task<Result<std::vector<Image>>> Vmm::images()
{
    auto list = [directory = config_.image_dir] { return list_images(directory); };
    auto found = co_await offload(loop_, list);
    co_return found;
}

namespace
{
struct Texts
{
    std::string compose, env, user_config;
};
Texts read_texts(const std::string& dir)
{
    constexpr std::size_t limit = 50ULL * 1024 * 1024;
    const auto read = [&dir](const char* name)
    {
        auto text = state::read_file(dir + "/shared/" + name, limit);
        return text ? std::move(*text) : std::string{};
    };
    return {read("app-compose.json"), read(".encrypted-env"), read(".user-config")};
}
} // namespace

Task<VmView> Vmm::view_of(VmPtr vm, bool with_configuration)
{
    VmView view{vm->manifest, vm->state, vm->running(), vm->removing, vm->instance_id, vm->image_version, with_configuration, {}, {}, {}};
    if (with_configuration)
    {
        auto read = [dir = vm->dir] { return read_texts(dir); };
        auto texts = co_await offload(loop_, read);
        view.compose_file = std::move(texts.compose);
        view.encrypted_env = std::move(texts.env);
        view.user_config = std::move(texts.user_config);
    }
    co_return view;
}

Task<Vmm::Listing> Vmm::status(StatusRequest request)
{
    std::vector<VmPtr> all;
    std::vector<const Manifest*> manifests;
    for (const auto& [id, vm] : vms_)
    {
        if (vm->creating) { continue; }
        all.push_back(vm);
        manifests.push_back(&vm->manifest);
    }
    const Page page = select(manifests, request);
    Listing out;
    out.total = page.total;
    for (const std::size_t index : page.indexes)
    {
        auto view = co_await view_of(all[index], !request.brief);
        out.views.push_back(std::move(view));
    }
    co_return out;
}

Task<std::optional<VmView>> Vmm::info(std::string id)
{
    auto vm = find(id);
    if (!vm) { co_return std::nullopt; }
    auto view = co_await view_of(vm, true);
    co_return view;
}

} // namespace dstack::vmm
