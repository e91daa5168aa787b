#include "services/dstackup/supervisor.hpp"
#include "services/dstackup/processes.hpp"
#include "shared/log/log.hpp"
#include "shared/state/files.hpp"
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <sys/stat.h>
#include <unistd.h>

namespace dstack::up
{

namespace
{
constexpr milliseconds stop_grace{5'000};
constexpr milliseconds log_check_period{5'000};
constexpr std::uint64_t max_log_bytes = 8 * 1024 * 1024;
constexpr std::size_t max_status_file = 1024 * 1024;

std::uint64_t unix_ms()
{
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    return static_cast<std::uint64_t>(std::chrono::duration_cast<milliseconds>(now).count());
}

Task<Result<Done>> wait_for(Event& event)
{
    co_await event.wait();
    co_return Done{};
}

/// True when the event came within `limit`.
Task<bool> within(Loop& loop, milliseconds limit, Event& event)
{
    auto waiting = wait_for(event);
    auto bounded = with_timeout(loop, limit, "wait", std::move(waiting));
    const auto outcome = co_await bounded;
    co_return static_cast<bool>(outcome);
}

/// Readers see the old file or the new one. Not durable: after a reboot its content means nothing.
void replace_file(const std::string& path, const std::string& text)
{
    const std::string temp = path + ".new";
    std::FILE* file = std::fopen(temp.c_str(), "we");
    const bool written = file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size();
    const bool closed = file != nullptr && std::fclose(file) == 0;
    if (!written || !closed || std::rename(temp.c_str(), path.c_str()) != 0)
    {
        log::warn("status not written", {{"file", path}, {"error", errno_error("write", errno).message}});
    }
}
} // namespace

Supervisor::Supervisor(Daemon& daemon, Settings settings)
    : daemon_(daemon), loop_(daemon.loop()), settings_(std::move(settings)), layout_{settings_.prefix},
      stopping_(loop_), progress_(loop_)
{
    for (const auto& service : roster)
    {
        auto& slot = slots_.emplace_back(loop_, service);
        slot.status.name = service.name;
        for (auto& candidate : program_candidates(settings_.program, layout_, service))
        {
            if (access(candidate.c_str(), X_OK) == 0)
            {
                slot.program = std::move(candidate);
                break;
            }
        }
    }
}

Result<Done> Supervisor::prepare()
{
    auto self = process::identify(getpid());
    if (!self) { return std::move(self).error(); }
    self_ = *self;
    auto recorded = state::write_file_atomic(layout_.supervisor_pid(), process::encode(self_), 0644);
    if (!recorded) { return std::move(recorded).error(); }
    auto text = state::read_file(layout_.status(), max_status_file);
    if (text)
    {
        auto earlier = decode_status(*text);
        if (earlier) { earlier_ = std::move(*earlier); }
    }
    auto notify = NotifySocket::open(loop_, layout_.notify_socket(),
                                     [this](pid_t sender, const Notice& notice) { noticed(sender, notice); });
    if (!notify) { return std::move(notify).error(); }
    notify_ = std::move(*notify);
    adopt_running();
    return Done{};
}

void Supervisor::adopt_running()
{
    const RunningServices running{layout_};
    for (auto& slot : slots_)
    {
        // Looked for among the processes, not in a record: a supervisor may be killed between a start and its record.
        const auto who = running.find(slot.service.name);
        if (!who) { continue; }
        auto watch = process::PidWatch::open(loop_, *who);
        if (!watch) { continue; }
        slot.watch.emplace(std::move(*watch));
        const auto* before = earlier_.find(slot.service.name);
        const bool same = before != nullptr && before->process == *who;
        if (same) { slot.status = *before; }
        slot.status.process = *who;
        slot.status.adopted = true;
        // Nobody heard its READY=1 if it came while there was no supervisor: a service that lives is taken as ready.
        const bool starting = same && before->phase == Phase::starting;
        if (!starting && slot.status.phase != Phase::ready) { enter(slot, Phase::ready); }
        if (slot.status.phase == Phase::ready) { slot.changed.set(); }
        log::info("adopted", {{"service", slot.service.name}, {"pid", who->pid}});
    }
}

Task<Result<Done>> Supervisor::run()
{
    auto lock = state::FileLock::acquire(layout_.supervisor_lock(), milliseconds{0});
    if (!lock)
    {
        co_return Error{
            Errc::already_exists, "another supervisor runs for " + settings_.prefix, "see dstackup dev status", {}};
    }
    auto prepared = prepare();
    if (!prepared) { co_return std::move(prepared).error(); }
    write_status();
    {
        Scope scope{loop_};
        Scope chores{loop_};
        chores.spawn(start_all(scope));
        chores.spawn(announce());
        chores.spawn(retry_on_reload());
        chores.spawn(bound_logs());
        co_await daemon_.stop_requested();
        chores.cancel();
        co_await stop_all();
        co_await scope.drain();
    }
    write_status();
    unlink(layout_.supervisor_pid().c_str());
    co_return Done{};
}

Task<> Supervisor::start_all(Scope& scope)
{
    for (auto& slot : slots_)
    {
        if (slot.service.first || slot.running()) { scope.spawn(keep(slot)); }
    }
    for (auto& slot : slots_)
    {
        if (slot.service.first) { co_await settled(slot); }
    }
    for (auto& slot : slots_)
    {
        const bool kept = slot.service.first || slot.running();
        if (!kept) { scope.spawn(keep(slot)); }
    }
}

Task<> Supervisor::settled(Slot& slot) { co_await slot.changed.wait(); }

/// Says READY=1 once everything is up; a service that was given up is said as STATUS=, so that `dev up` need not wait.
Task<> Supervisor::announce()
{
    for (auto& slot : slots_) { co_await settled(slot); }
    while (true)
    {
        MeshStatus now;
        for (const auto& slot : slots_) { now.services.push_back(slot.status); }
        if (now.all_ready()) { break; }
        if (const auto* failed = now.failed())
        {
            const std::string text = "failed " + failed->name;
            daemon_.status(text);
        }
        progress_.reset();
        co_await progress_.wait();
    }
    log::info("all ready");
    daemon_.ready();
}

Task<> Supervisor::keep(Slot& slot)
{
    while (!stopping_.is_set())
    {
        if (!slot.running())
        {
            auto started = start(slot);
            if (!started)
            {
                log::error("not started", {{"service", slot.service.name}, {"error", started.error().message}});
                slot.status.last_exit = started.error().message;
                std::string reason = "not_started";
                co_await give_up(slot, std::move(reason));
                continue;
            }
        }
        const bool exit_known = slot.child.has_value();
        const auto exit = co_await ended(slot);
        slot.child.reset();
        slot.watch.reset();
        const bool go_on = co_await after_end(slot, exit, exit_known);
        if (!go_on) { break; }
    }
    slot.status.process = {};
    enter(slot, Phase::stopped);
    slot.changed.set();
}

Task<process::Exit> Supervisor::ended(Slot& slot)
{
    if (slot.child)
    {
        const auto exit = co_await slot.child->wait();
        co_return exit ? *exit : process::Exit{};
    }
    co_await slot.watch->exited();
    co_return process::Exit{};
}

/// Waits until the next start is due. False when there will be none.
Task<bool> Supervisor::after_end(Slot& slot, process::Exit exit, bool exit_known)
{
    slot.status.process = {};
    slot.status.last_exit = exit_known ? to_string(exit) : "ended (it was adopted: how is not known)";
    if (stopping_.is_set()) { co_return false; }
    std::optional<int> code;
    if (exit_known && exit.signal == 0) { code = exit.code; }
    const auto next = slot.budget.ended(loop_.now(), code);
    log::warn("service ended",
              {{"service", slot.service.name}, {"exit", slot.status.last_exit}, {"recent", slot.budget.recent()}});
    if (next.give_up)
    {
        log::error("service given up", {{"service", slot.service.name}, {"reason", next.reason}});
        std::string reason{next.reason};
        co_await give_up(slot, std::move(reason));
        co_return !stopping_.is_set();
    }
    enter(slot, Phase::backoff);
    slot.retry.reset();
    co_await within(loop_, next.delay, slot.retry);
    ++slot.status.restarts;
    co_return !stopping_.is_set();
}

/// Until somebody wants another try.
Task<> Supervisor::give_up(Slot& slot, std::string reason)
{
    slot.status.reason = std::move(reason);
    enter(slot, Phase::failed);
    slot.changed.set();
    slot.retry.reset();
    if (!stopping_.is_set()) { co_await slot.retry.wait(); }
    slot.status.reason.clear();
    slot.budget.reset();
}

Result<Done> Supervisor::start(Slot& slot)
{
    if (slot.program.empty())
    {
        return Error{
            Errc::not_found, "dstack-" + std::string{slot.service.name} + " is not built", "run deploy/build", {}};
    }
    process::Spec spec;
    spec.argv = {slot.program, "--config", layout_.config(slot.service.name)};
    spec.env = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8",
                "NOTIFY_SOCKET=" + layout_.notify_socket()};
    spec.out = {process::Sink::Kind::file, layout_.log(slot.service.name)};
    spec.err = spec.out;
    spec.new_session = true;
    auto child = process::spawn(loop_, spec);
    if (!child) { return std::move(child).error(); }
    slot.child.emplace(std::move(*child));
    const auto who = process::identify(slot.child->pid());
    slot.status.process = who ? *who : process::Identity{slot.child->pid(), 0, {}};
    slot.status.adopted = false;
    slot.status.text.clear();
    slot.changed.reset();
    enter(slot, Phase::starting);
    return Done{};
}

void Supervisor::noticed(pid_t sender, const Notice& notice)
{
    const auto found = std::find_if(slots_.begin(), slots_.end(),
                                    [&](const Slot& s) { return s.running() && s.status.process.pid == sender; });
    if (found == slots_.end()) { return; } // a grandchild, or somebody who may not speak here
    if (!notice.status.empty() && notice.status != found->status.text)
    {
        found->status.text = notice.status;
        write_status();
    }
    if (notice.ready && found->status.phase == Phase::starting)
    {
        enter(*found, Phase::ready);
        found->changed.set();
    }
}

Task<> Supervisor::stop(Slot& slot)
{
    if (!slot.running()) { co_return; }
    enter(slot, Phase::stopping);
    slot.changed.reset();
    for (const int signal : {SIGTERM, SIGKILL})
    {
        const auto sent = slot.child ? slot.child->kill(signal) : slot.watch->kill(signal);
        if (!sent) { log::warn("not signalled", {{"service", slot.service.name}, {"error", sent.error().message}}); }
        const bool gone = co_await within(loop_, stop_grace, slot.changed);
        if (gone) { co_return; }
        log::warn("service did not stop", {{"service", slot.service.name}, {"signal", signal}});
    }
}

Task<> Supervisor::stop_all()
{
    stopping_.set();
    for (auto& slot : slots_) { slot.retry.set(); }
    Scope scope{loop_};
    for (auto& slot : slots_)
    {
        if (!slot.service.first) { scope.spawn(stop(slot)); }
    }
    co_await scope.drain();
    for (auto& slot : slots_)
    {
        if (slot.service.first) { co_await stop(slot); }
    }
}

Task<> Supervisor::retry_on_reload()
{
    while (true)
    {
        co_await daemon_.reload().wait();
        daemon_.reload().reset();
        for (auto& slot : slots_)
        {
            if (slot.status.phase == Phase::failed || slot.status.phase == Phase::backoff) { slot.retry.set(); }
        }
    }
}

Task<> Supervisor::bound_logs()
{
    while (true)
    {
        co_await sleep_for(loop_, log_check_period);
        std::vector<std::string> names{"supervisor"};
        for (const auto& service : roster) { names.emplace_back(service.name); }
        for (const auto& service : grandchildren) { names.emplace_back(service.name); }
        for (const auto& name : names)
        {
            std::string path = layout_.log(name);
            auto work = [path] { return bound_log(path, max_log_bytes); };
            const auto bounded = co_await offload(loop_, work);
            if (!bounded) { log::warn("log not bounded", {{"error", bounded.error().message}}); }
        }
    }
}

void Supervisor::enter(Slot& slot, Phase phase)
{
    slot.status.phase = phase;
    slot.status.since_ms = unix_ms();
    write_status();
    progress_.set();
}

void Supervisor::write_status()
{
    MeshStatus now;
    now.supervisor = self_;
    for (const auto& slot : slots_) { now.services.push_back(slot.status); }
    auto text = encode(now);
    if (text == written_) { return; }
    written_ = std::move(text);
    replace_file(layout_.status(), written_);
}

Task<Result<Done>> supervise(Daemon& daemon, Settings settings)
{
    Supervisor supervisor{daemon, std::move(settings)};
    co_return co_await supervisor.run();
}

Result<bool> bound_log(const std::string& path, std::uint64_t max_bytes)
{
    struct stat info
    {
    };
    if (stat(path.c_str(), &info) != 0 || static_cast<std::uint64_t>(info.st_size) <= max_bytes) { return false; }
    auto text = state::read_file(path, static_cast<std::size_t>(max_bytes) * 16);
    if (!text && text.error().code != Errc::resource_exhausted) { return std::move(text).error(); }
    if (text)
    {
        auto kept = std::string_view{*text};
        if (kept.size() > max_bytes) { kept.remove_prefix(kept.size() - max_bytes); }
        auto written = state::write_file_atomic(path + ".1", kept, 0600);
        if (!written) { return std::move(written).error(); }
    }
    if (truncate(path.c_str(), 0) != 0) { return errno_error("truncate " + path, errno); }
    return true;
}

} // namespace dstack::up
