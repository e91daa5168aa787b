#include "services/logs/collector.hpp"
#include "shared/log/log.hpp"
#include "shared/state/files.hpp"
#include <algorithm>
#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

namespace dstack::logs
{

namespace
{
constexpr milliseconds look_every{1'000}; ///< where the kernel tells nothing
constexpr milliseconds scan_every{2'000};
constexpr milliseconds retry_after{1'000};
constexpr milliseconds gather{20}; ///< lines that come one by one are kept together
constexpr int scans_per_bound = 15;

std::vector<std::string> names_in(const std::string& directory)
{
    std::vector<std::string> out;
    DIR* entries = opendir(directory.c_str());
    if (entries == nullptr) { return out; }
    while (const dirent* entry = readdir(entries)) { out.emplace_back(entry->d_name); }
    closedir(entries);
    std::sort(out.begin(), out.end());
    return out;
}

bool is_file(const std::string& path)
{
    struct stat info{};
    return lstat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

/// What lies where logs are expected. Blocking.
std::vector<SourceInfo> look(const std::string& vm_root, const std::string& service_dir)
{
    std::vector<SourceInfo> out;
    for (const std::string& name : names_in(vm_root))
    {
        const std::string path = vm_root + "/" + name + "/serial.log";
        if (!is_source_name(name) || !is_file(path)) { continue; }
        SourceInfo info;
        info.id = name;
        info.path = path;
        out.push_back(std::move(info));
    }
    if (service_dir.empty()) { return out; }
    for (const std::string& name : names_in(service_dir))
    {
        if (!name.ends_with(".log")) { continue; }
        SourceInfo info;
        info.kind = SourceInfo::Kind::service;
        info.id = name.substr(0, name.size() - 4);
        info.name = info.id;
        info.path = service_dir + "/" + name;
        if (is_source_name(info.id) && is_file(info.path)) { out.push_back(std::move(info)); }
    }
    return out;
}

struct Opened
{
    SourceInfo info;
    std::shared_ptr<LineStore> store;
};

Result<Opened> open_source(const std::string& directory, SourceInfo info, std::uint64_t quota, bool write)
{
    auto store = LineStore::open(directory, quota);
    if (!store) { return std::move(store).error(); }
    if (write)
    {
        auto written = state::write_file_atomic(directory + "/source.json", encode(info), 0640);
        if (!written) { return std::move(written).error(); }
    }
    return Opened{std::move(info), std::move(*store)};
}

std::vector<SourceInfo> read_known(const std::string& store_dir)
{
    std::vector<SourceInfo> out;
    for (const std::string& name : names_in(store_dir))
    {
        const auto text = state::read_file(store_dir + "/" + name + "/source.json", 64 * 1024);
        if (!text) { continue; }
        auto info = decode_source(*text);
        if (info && directory_name(*info) == name) { out.push_back(std::move(*info)); }
    }
    return out;
}

/// Completes when the event is set or the time is over.
Task<Result<Done>> set(Event& event)
{
    co_await event.wait();
    co_return Done{};
}

/// Sets the source's `wake` when the kernel says that its file changed. There may be no such file yet.
UvHandle<uv_fs_event_t> watch(Loop& loop, Source& source)
{
    auto handle = make_uv<uv_fs_event_t>([&](uv_fs_event_t* h) { return uv_fs_event_init(loop.raw(), h); });
    handle->data = &source;
    const int started = uv_fs_event_start(
        handle.get(), [](uv_fs_event_t* h, const char*, int, int) { static_cast<Source*>(h->data)->wake.set(); },
        source.info.path.c_str(), 0);
    if (started != 0) { return nullptr; }
    return handle;
}

void pulse(Event& event)
{
    event.set();
    event.reset();
}
} // namespace

std::uint64_t unix_ms()
{
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count());
}

Collector::Collector(Loop& loop, const Config& config, std::function<void(const SourceInfo&, const Loss&)> on_loss)
    : loop_(loop), config_(config), on_loss_(std::move(on_loss)), adding_(loop), scope_(loop)
{
}

Collector::~Collector() = default;

Task<Result<Done>> Collector::start()
{
    auto prepare = [dir = config_.store_dir]() -> Result<std::vector<SourceInfo>>
    {
        auto made = state::make_dirs(dir, 0750);
        if (!made) { return std::move(made).error(); }
        return read_known(dir);
    };
    auto known = co_await offload(loop_, prepare);
    if (!known) { co_return std::move(known).error(); }
    for (const SourceInfo& info : *known)
    {
        SourceInfo one = info;
        auto adding = add(std::move(one), false);
        auto added = co_await adding;
        if (!added) { log::error("log store not readable", {{"source", info.id}, {"error", added.error().message}}); }
    }
    scope_.spawn(chores()); // looks for what is new without holding up readiness
    co_return Done{};
}

Task<> Collector::scan()
{
    auto work = [vm_root = config_.vm_root, service_dir = config_.service_log_dir] { return look(vm_root, service_dir); };
    auto found = co_await offload(loop_, work);
    for (const SourceInfo& info : found)
    {
        const auto known = sources_.find(directory_name(info));
        if (known != sources_.end() && !known->second->info.removed && known->second->info.path == info.path) { continue; }
        SourceInfo one = info;
        auto learning = learn(std::move(one));
        auto learned = co_await learning;
        if (!learned) { log::error("log not collected", {{"source", info.id}, {"error", learned.error().message}}); }
    }
}

Task<> Collector::chores()
{
    for (int i = 1;; ++i)
    {
        co_await scan();
        co_await sleep_for(loop_, scan_every);
        if (i % scans_per_bound == 0) { co_await bound_total(); }
    }
}

Task<Result<Done>> Collector::learn(SourceInfo info)
{
    if (!is_source_name(info.id))
    {
        co_return Error{Errc::invalid_argument, "the id is not usable as a name", {}, {}};
    }
    if (info.kind == SourceInfo::Kind::vm && !is_inside(config_.vm_root, info.path))
    {
        co_return Error{Errc::permission_denied, "the log " + info.path + " is not inside " + config_.vm_root, "check vm_root", {}};
    }
    auto guard = co_await adding_.lock();
    const auto known = sources_.find(directory_name(info));
    if (known == sources_.end())
    {
        info.created_ms = unix_ms();
        auto adding = add(std::move(info), true);
        co_return co_await adding;
    }
    const std::shared_ptr<Source> source = known->second;
    SourceInfo merged = source->info;
    if (!info.name.empty()) { merged.name = info.name; }
    if (!info.app_id.empty()) { merged.app_id = info.app_id; }
    merged.path = info.path;
    merged.removed = false;
    if (merged == source->info) { co_return Done{}; }
    const bool restart = source->finished || merged.path != source->info.path;
    auto work = [path = config_.store_dir + "/" + directory_name(merged) + "/source.json", text = encode(merged)]
    { return state::write_file_atomic(path, text, 0640); };
    auto written = co_await offload(loop_, work);
    if (!written) { co_return std::move(written).error(); }
    source->info = merged;
    if (restart)
    {
        source->dropped = true; // its old task ends
        source->wake.set();
        pulse(source->changed);
        auto fresh = std::make_shared<Source>(loop_, std::move(merged));
        fresh->store = source->store;
        fresh->next = fresh->store->next();
        sources_[directory_name(fresh->info)] = fresh;
        scope_.spawn(follow(fresh));
        co_return Done{};
    }
    source->wake.set();
    co_return Done{};
}

Task<Result<Done>> Collector::add(SourceInfo info, bool write)
{
    const std::string name = directory_name(info);
    auto work = [directory = config_.store_dir + "/" + name, info, quota = config_.source_bytes, write]
    { return open_source(directory, info, quota, write); };
    auto opened = co_await offload(loop_, work);
    if (!opened) { co_return std::move(opened).error(); }
    auto source = std::make_shared<Source>(loop_, std::move(info));
    source->store = opened->store;
    source->next = source->store->next();
    sources_[name] = source;
    scope_.spawn(follow(source));
    co_return Done{};
}

Task<> Collector::forget_vm(std::string vm_id)
{
    SourceInfo key;
    key.id = std::move(vm_id);
    auto guard = co_await adding_.lock();
    const auto known = sources_.find(directory_name(key));
    if (known == sources_.end() || known->second->info.removed) { co_return; }
    const std::shared_ptr<Source> source = known->second;
    source->info.removed = true;
    source->wake.set();
    auto work = [path = config_.store_dir + "/" + directory_name(source->info) + "/source.json", text = encode(source->info)]
    { return state::write_file_atomic(path, text, 0640); };
    auto written = co_await offload(loop_, work);
    if (!written) { log::error("removal not noted", {{"source", source->info.id}, {"error", written.error().message}}); }
}

Task<> Collector::follow(std::shared_ptr<Source> source)
{
    const Channel channel = source->info.kind == SourceInfo::Kind::vm ? Channel::serial : Channel::service;
    TailerLimits limits;
    limits.flood_bytes = config_.flood_bytes;
    struct Following // what the pool's thread uses, also when this task is destroyed meanwhile
    {
        std::shared_ptr<LineStore> store;
        Tailer tailer;
    };
    auto following = std::shared_ptr<Following>(
        new Following{source->store, Tailer{source->info.path, channel, *source->store, limits}});
    UvHandle<uv_fs_event_t> watched;
    bool file_seen = false;
    while (!source->dropped)
    {
        source->wake.reset();
        if (!watched) { watched = watch(loop_, *source); }
        const bool removed = source->info.removed;
        auto work = [following] { return following->tailer.step(unix_ms()); };
        auto step = co_await offload(loop_, work);
        if (!step)
        {
            if (!source->complained)
            {
                log::error("log not collected", {{"source", source->info.id}, {"error", step.error().message}});
            }
            source->complained = true;
            co_await sleep_for(loop_, retry_after);
            continue;
        }
        source->complained = false;
        for (const Loss& loss : step->losses) { on_loss_(source->info, loss); }
        if (step->next != source->next)
        {
            source->next = step->next;
            pulse(source->changed);
        }
        if (step->gone)
        {
            watched.reset(); // of the old file
            if (removed)
            {
                source->finished = true;
                pulse(source->changed);
                co_return;
            }
        }
        else if (!file_seen)
        {
            watched.reset(); // perhaps from before there was one
            watched = watch(loop_, *source);
            file_seen = true;
        }
        if (step->more)
        {
            watched.reset();
            co_await sleep_for(loop_, milliseconds{2}); // a flood gets its turn, not everybody's
            continue;
        }
        auto waiting = set(source->wake);
        auto woken = co_await with_timeout(loop_, look_every, "wake", std::move(waiting));
        if (woken) { co_await sleep_for(loop_, gather); }
    }
}

Task<> Collector::bound_total()
{
    std::uint64_t total = 0;
    std::vector<std::shared_ptr<Source>> removed;
    for (const auto& [name, source] : sources_)
    {
        total += source->store->bytes();
        if (source->finished) { removed.push_back(source); }
    }
    std::sort(removed.begin(), removed.end(),
              [](const auto& a, const auto& b) { return a->info.created_ms < b->info.created_ms; });
    for (const auto& source : removed)
    {
        if (total <= config_.total_bytes) { co_return; }
        total -= std::min(total, source->store->bytes());
        source->dropped = true;
        pulse(source->changed);
        const std::string name = directory_name(source->info);
        sources_.erase(name);
        auto work = [path = config_.store_dir + "/" + name] { return state::remove_tree(path); };
        auto gone = co_await offload(loop_, work);
        if (!gone) { log::error("old log not removed", {{"source", source->info.id}, {"error", gone.error().message}}); }
        else { log::info("old log removed", {{"source", source->info.id}, {"why", "total_bytes"}}); }
    }
}

Result<std::shared_ptr<Source>> Collector::find(std::string_view wanted) const
{
    std::vector<SourceInfo> infos;
    std::vector<std::shared_ptr<Source>> all;
    for (const auto& [name, source] : sources_)
    {
        infos.push_back(source->info);
        all.push_back(source);
    }
    auto index = resolve(infos, wanted);
    if (!index) { return std::move(index).error(); }
    return all[*index];
}

} // namespace dstack::logs
