#pragma once
#include "services/vmm-local/manifest.hpp"
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::vmm
{

// Decisions about a VM's life: pure functions over what is known.

/// B.9: from the wish, the process, and whether removal has begun.
std::string_view status_of(bool started, bool running, bool removing);

/// "5m 3s", "1day 2h": whole seconds as upstream's humantime writes them; "never" when it never happened.
std::string human_duration(std::uint64_t seconds);
std::string elapsed(std::uint64_t then_ms, std::uint64_t now_ms);

/// What a Notify of the guest does (C.4). `refused` is not empty when the host does not take it.
struct NotifyEffect
{
    enum class Kind { progress, ready, error, error_cleared, shutdown, powering_off, instance_info, refused };
    Kind kind = Kind::refused;
    std::string refused;
};
NotifyEffect judge_notify(std::string_view event, std::string_view payload);
constexpr std::size_t max_notify_bytes = 4096;
/// Applies it to the state, with the ring of events.
void apply_notify(State& state, const NotifyEffect& effect, std::string_view event, std::string_view payload, std::uint64_t now_ms);

/// `instance.info`'s body: {"instance_id_seed","instance_id","app_id"} in hex, each optional; the instance id or why not.
Result<std::string> instance_id_of(std::string_view instance_info);

/// What is known when a VM's process is gone.
struct ExitFacts
{
    std::string stop_asked;        ///< State::stop_asked
    bool powering_off = false;     ///< the guest announced it
    std::string boot_error;
    std::string qmp_reason;        ///< of QMP's SHUTDOWN event; empty when it was not seen
    std::string panic;             ///< what the kernel said of its panic in this boot; empty: nothing
    std::string stderr_tail;       ///< what QEMU said last
};
struct ExitVerdict
{
    bool expected = false;   ///< vm.stopped instead of vm.exited
    std::string how;         ///< for vm.stopped: stop, shutdown or guest
    std::string reason;      ///< for vm.exited
    bool may_restart = false; ///< as far as this exit goes; the budget decides further
};
ExitVerdict judge_exit(const ExitFacts& facts);

/// What QEMU's last words mean to an operator: "host port tcp 127.0.0.1:8080 is already in use".
std::string explain_qemu(std::string_view stderr_text);

/// The end of a serial log: at most `lines` lines, control bytes replaced, each cut at 300 bytes.
std::vector<std::string> last_lines(std::string_view log, std::size_t lines);
/// Since the last boot marker of this VMM.
std::string_view last_boot(std::string_view log);
/// What the kernel said of its panic: "VFS: Unable to mount root fs"; "unknown" when it said no more; empty without a panic.
/// Only the kernel's own line counts: one that an app printed has the agent's prefix and no time stamp right before it.
std::string panic_of(std::string_view log);
/// The kernel has panicked and will neither reset nor power off (panic=0): the line that it prints last.
bool hangs_in_panic(std::string_view log);
constexpr std::string_view boot_marker = "===== boot @ ";

/// Automatic restarts (B.11).
struct RestartPolicy
{
    bool enabled = true;
    std::uint32_t max_retries = 5;
    std::uint64_t initial_backoff_ms = 5'000;
    std::uint64_t max_backoff_ms = 300'000;
    std::uint64_t reset_window_ms = 300'000;
};
/// The delay before attempt number `attempts_made` + 1; nothing when the budget is used up.
std::optional<std::uint64_t> restart_delay(const RestartPolicy& policy, std::uint32_t attempts_made);

/// Removes escape sequences (CSI, OSC, two-byte ones) of a terminal.
std::string strip_ansi(std::string_view text);
/// Bytes that are no UTF-8 become U+FFFD.
std::string lossy_utf8(std::string_view text);

} // namespace dstack::vmm
