#include "services/kms-supervisor/supervisor.hpp"
#include "shared/log/log.hpp"
#include "shared/state/files.hpp"
#include <ctime>
#include <fstream>

namespace dstack::kms_supervisor
{

namespace
{

constexpr milliseconds stop_grace{5'000};
constexpr milliseconds settle_limit{3'000}; ///< READY=1 does not wait longer for the first verdict
constexpr std::size_t max_answer = 256 * 1024;

std::string rfc3339_now()
{
    const auto now = std::chrono::system_clock::now();
    const auto since = std::chrono::duration_cast<milliseconds>(now.time_since_epoch()).count();
    const std::time_t seconds = since / 1000;
    std::tm fields{};
    gmtime_r(&seconds, &fields);
    std::array<char, 32> date{};
    std::strftime(date.data(), date.size(), "%Y-%m-%dT%H:%M:%S", &fields);
    std::array<char, 48> out{};
    std::snprintf(out.data(), out.size(), "%s.%03dZ", date.data(), static_cast<int>(since % 1000));
    return out.data();
}

/// The last line that the KMS wrote: nearly always why it ended. Bounded, blocking.
std::string last_line(const std::string& path)
{
    constexpr std::streamoff most = 2048;
    std::ifstream file{path, std::ios::binary | std::ios::ate};
    if (path.empty() || !file) { return {}; }
    const std::streamoff size = file.tellg();
    file.seekg(std::max<std::streamoff>(0, size - most));
    std::string text{std::istreambuf_iterator<char>{file}, {}};
    while (text.ends_with('\n')) { text.pop_back(); }
    return text.substr(text.rfind('\n') + 1);
}

} // namespace

namespace
{
/// The pin for a KMS that a service manager starts: its unit reads this as its environment.
std::string pin_environment_file(const Config& config) { return config.state_dir + "/pinned.env"; }
std::string pin_environment(const Identity& identity) { return "DSTACK_KMS_PINNED_CA=" + identity.ca_fingerprint + "\n"; }
} // namespace

std::string pin_file(const Config& config) { return config.state_dir + "/identity.json"; }

Supervisor::Supervisor(Daemon& daemon, const Config& config, std::optional<Identity> pinned, bus::Publisher& events)
    : daemon_(daemon), loop_(daemon.loop()), config_(config),
      machine_(config.restart, config.local, config.probe_interval, std::move(pinned)), http_(loop_),
      events_(events), changed_(loop_), settled_(loop_), scope_(loop_)
{
}

void Supervisor::give_up(std::string reason) { apply(machine_.gave_up(std::move(reason))); }

Task<Result<Done>> Supervisor::run()
{
    if (bus::Client* client = events_.client(); client != nullptr)
    {
        client->serve<schema::KmsStatus>([this](schema::KmsStatus, bus::CallContext) { return status(); });
    }
    events_.start();
    if (config_.local) { scope_.spawn(keep_process()); }
    scope_.spawn(keep_probing());
    auto settled = settled_event();
    std::string what = "first verdict";
    auto verdict = co_await with_timeout(loop_, settle_limit, std::move(what), std::move(settled));
    (void)verdict; // the state says it, also when there is none yet
    daemon_.ready();
    log::info("watching", {{"url", config_.url}, {"state", to_string(machine_.phase())}});
    co_await daemon_.stop_requested();
    scope_.cancel();
    const milliseconds goodbye{1'000};
    co_await events_.stop(goodbye);
    log::info("stopped", {{"kms_pid", machine_.pid()}});
    co_return Done{};
}

// --- the process ------------------------------------------------------------------------------------------------

Task<> Supervisor::keep_process()
{
    const auto adopted = co_await adopt();
    if (adopted)
    {
        apply(machine_.started(std::chrono::steady_clock::now(), static_cast<std::uint64_t>(watch_->who().pid), true));
    }
    for (;;)
    {
        if (watch_)
        {
            co_await watch_->exited();
            watch_.reset();
            std::string reason;
            if (kill_reason_) { reason = *kill_reason_; }
            else
            {
                const std::string log_path = config_.program_log;
                auto read = [log_path] { return last_line(log_path); };
                auto line = co_await offload(loop_, read);
                reason = line.empty() ? "the process ended" : "the process ended: " + line;
            }
            kill_reason_.reset();
            apply(machine_.exited(std::chrono::steady_clock::now(), std::move(reason)));
            continue;
        }
        const auto at = machine_.start_at();
        if (!at) { co_return; }
        const auto now = std::chrono::steady_clock::now();
        if (*at > now)
        {
            const auto left = std::chrono::duration_cast<milliseconds>(*at - now) + milliseconds{1};
            co_await sleep_for(loop_, left);
            continue;
        }
        co_await start_process();
    }
}

Task<> Supervisor::start_process()
{
    process::Spec spec;
    spec.argv = {config_.program, "--config", config_.program_config};
    spec.env = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"};
    if (machine_.pinned_identity())
    {
        spec.env.push_back("DSTACK_KMS_PINNED_CA=" + machine_.pinned_identity()->ca_fingerprint);
    }
    if (!config_.program_log.empty()) { spec.err = {process::Sink::Kind::file, config_.program_log}; }
    const std::string path = pid_file();
    auto start = [spec, path]
    {
        return process::spawn_detached(spec, [&path](const process::Identity& who)
                                       { return state::write_file_atomic(path, process::encode(who), 0644); });
    };
    auto started = co_await offload(loop_, start);
    const auto now = std::chrono::steady_clock::now();
    if (!started)
    {
        apply(machine_.exited(now, "not started: " + started.error().message));
        co_return;
    }
    apply(machine_.started(now, static_cast<std::uint64_t>(started->pid), false));
    auto watch = process::PidWatch::open(loop_, *started);
    if (watch) { watch_.emplace(std::move(*watch)); }
    else { apply(machine_.exited(now, "the process ended at once: " + last_line(config_.program_log))); }
}

Task<bool> Supervisor::adopt()
{
    const std::string path = pid_file();
    auto read = [path] { return state::read_file(path, 4096); };
    auto text = co_await offload(loop_, read);
    if (!text) { co_return false; }
    auto who = process::decode(*text);
    if (!who || !process::alive(*who)) { co_return false; }
    auto watch = process::PidWatch::open(loop_, *who);
    if (!watch) { co_return false; }
    log::info("kms adopted", {{"pid", who->pid}});
    watch_.emplace(std::move(*watch));
    co_return true;
}

Task<> Supervisor::end_process(process::Identity who)
{
    auto ended = co_await process::terminate(loop_, who, stop_grace);
    if (!ended) { log::error("kms not ended", {{"pid", who.pid}, {"error", ended.error().message}}); }
}

// --- probing ----------------------------------------------------------------------------------------------------

Task<Result<Done>> Supervisor::changed_event()
{
    co_await changed_.wait();
    co_return Done{};
}

Task<Result<Done>> Supervisor::settled_event()
{
    co_await settled_.wait();
    co_return Done{};
}

Task<> Supervisor::keep_probing()
{
    for (;;)
    {
        const auto delay = machine_.probe_after(std::chrono::steady_clock::now());
        changed_.reset();
        auto change = changed_event();
        if (!delay)
        {
            co_await change;
            continue;
        }
        const milliseconds pause = *delay;
        std::string what = "probe";
        auto woken = co_await with_timeout(loop_, pause, std::move(what), std::move(change));
        if (woken) { continue; }
        const auto asked = machine_.pid();
        auto seen = co_await probe();
        if (asked != machine_.pid()) { continue; } // the answer of a process that is gone
        if (seen.kind == Probe::Kind::ready) { observed_at_ = rfc3339_now(); }
        auto outcome = machine_.probed(std::chrono::steady_clock::now(), seen);
        const auto to_pin = outcome.pin;
        apply(std::move(outcome));
        if (to_pin)
        {
            Identity identity = *to_pin;
            co_await pin(std::move(identity));
        }
    }
}

Task<Probe> Supervisor::probe()
{
    http::ClientRequest request;
    request.method = "POST";
    request.url = config_.url + (config_.url.ends_with('/') ? "prpc/GetMeta?json" : "/prpc/GetMeta?json");
    request.body = "{}";
    request.connect_timeout = config_.probe_timeout;
    request.timeout = config_.probe_timeout;
    request.max_response_bytes = max_answer;
    request.tls.verify = http::TlsClientConfig::Verify::none; // judged by the CA in the answer, which is pinned
    auto response = co_await http_.send(std::move(request));
    if (!response) { co_return Probe{Probe::Kind::silent, {}, response.error().message}; }
    co_return judge(response->status, response->body,
                    crypto::View{reinterpret_cast<const std::uint8_t*>(response->peer_certificate_der.data()),
                                 response->peer_certificate_der.size()},
                    std::time(nullptr));
}

Task<> Supervisor::pin(Identity identity)
{
    const std::string path = pin_file(config_);
    const std::string text = encode(identity);
    const std::string environment_path = pin_environment_file(config_);
    const std::string environment = pin_environment(identity);
    auto write = [path, text, environment_path, environment]
    {
        auto done = state::write_file_atomic(path, text, 0644);
        return done ? state::write_file_atomic(environment_path, environment, 0644) : done;
    };
    auto written = co_await offload(loop_, write);
    if (!written)
    {
        const Probe unpinned{Probe::Kind::answered, {}, "its identity could not be pinned: " + written.error().message};
        apply(machine_.probed(std::chrono::steady_clock::now(), unpinned));
        co_return;
    }
    apply(machine_.pinned(std::chrono::steady_clock::now(), identity));
}

// --- telling ----------------------------------------------------------------------------------------------------

void Supervisor::apply(Machine::Outcome outcome)
{
    for (const auto notice : outcome.notices) { tell(notice); }
    if (outcome.kill && watch_)
    {
        kill_reason_ = "killed: " + machine_.reason();
        scope_.spawn(end_process(watch_->who()));
    }
    const auto phase = machine_.phase();
    if (phase != Phase::stopped && phase != Phase::starting) { settled_.set(); }
    changed_.set();
}

schema::KmsState Supervisor::snapshot() const
{
    schema::KmsState out;
    out.state = to_string(machine_.phase());
    out.url = config_.url;
    out.pid = machine_.pid();
    out.restarts = machine_.restarts();
    out.reason = machine_.reason();
    if (const auto& pinned = machine_.pinned_identity())
    {
        out.ca_fingerprint = pinned->ca_fingerprint;
        out.k256_pubkey = pinned->k256_pubkey;
    }
    return out;
}

void Supervisor::tell(Notice notice)
{
    const auto kms = snapshot();
    daemon_.status("kms " + kms.state + (kms.reason.empty() ? "" : ": " + kms.reason));
    switch (notice)
    {
    case Notice::starting:
        events_.emit(schema::KmsStarting{kms});
        break;
    case Notice::ready:
        events_.emit(schema::KmsReady{kms});
        break;
    case Notice::unready:
        events_.emit(schema::KmsUnready{kms});
        break;
    case Notice::failed:
        events_.emit(schema::KmsFailed{kms});
        break;
    case Notice::identity_pinned:
        events_.emit(schema::KmsIdentityPinned{kms});
        break;
    case Notice::identity_changed:
        events_.emit(schema::KmsIdentityChanged{kms, machine_.other().ca_fingerprint, machine_.other().k256_pubkey});
        break;
    }
}

Task<Result<schema::KmsStatus::Reply>> Supervisor::status()
{
    co_return schema::KmsStatus::Reply{snapshot(), observed_at_};
}

// --- the service ------------------------------------------------------------------------------------------------

Task<Result<Done>> serve(Daemon& daemon, Config config)
{
    auto made = state::make_dirs(config.state_dir, 0700);
    if (!made) { co_return std::move(made).error(); }
    auto lock = state::FileLock::acquire(config.state_dir + "/lock", milliseconds{2'000});
    if (!lock) { co_return std::move(lock).error().within("another dstack-kms-supervisor uses " + config.state_dir); }
    const std::string path = pin_file(config);
    auto text = state::read_file(path, 4096);
    std::optional<Identity> pinned;
    std::string damage;
    if (text)
    {
        auto identity = decode_identity(*text);
        if (identity)
        {
            auto told = state::write_file_atomic(pin_environment_file(config), pin_environment(*identity), 0644);
            if (!told) { co_return std::move(told).error(); }
            pinned = std::move(*identity);
        }
        else { damage = "pin_damaged: " + path + ": " + identity.error().message; }
    }
    else if (text.error().code != Errc::not_found) { damage = "pin_unreadable: " + text.error().message; }
    auto events = bus::Publisher::open(daemon.loop(), config.state_dir, bus::ClientConfig{config.bus_directory, "kms-supervisor"});
    if (!events) { co_return std::move(events).error(); }
    Supervisor supervisor{daemon, config, std::move(pinned), **events};
    if (!damage.empty()) { supervisor.give_up(std::move(damage)); }
    co_return co_await supervisor.run();
}

} // namespace dstack::kms_supervisor
