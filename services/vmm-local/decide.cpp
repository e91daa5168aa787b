#include "services/vmm-local/decide.hpp"
#include "shared/crypto/hex.hpp"
#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

namespace dstack::vmm
{

std::string_view status_of(bool started, bool running, bool removing)
{
    if (removing) { return "removing"; }
    if (started) { return running ? "running" : "exited"; }
    return running ? "stopping" : "stopped";
}

std::string human_duration(std::uint64_t seconds)
{
    // humantime: a year is 365.25 days, a month a twelfth of it.
    constexpr std::uint64_t year = 31'557'600, month = 2'630'016, day = 86'400;
    std::string out;
    const auto put = [&out](std::uint64_t count, std::string_view one, std::string_view many)
    {
        if (count == 0) { return; }
        if (!out.empty()) { out += ' '; }
        out += std::to_string(count);
        out += count == 1 ? one : many;
    };
    put(seconds / year, "year", "years");
    seconds %= year;
    put(seconds / month, "month", "months");
    seconds %= month;
    put(seconds / day, "day", "days");
    seconds %= day;
    put(seconds / 3600, "h", "h");
    put(seconds % 3600 / 60, "m", "m");
    put(seconds % 60, "s", "s");
    return out.empty() ? "0s" : out;
}

std::string elapsed(std::uint64_t then_ms, std::uint64_t now_ms)
{
    if (then_ms == 0) { return "never"; }
    return human_duration(now_ms > then_ms ? (now_ms - then_ms) / 1000 : 0);
}

NotifyEffect judge_notify(std::string_view event, std::string_view payload)
{
    using Kind = NotifyEffect::Kind;
    if (event == "boot.progress") { return {payload == "done" ? Kind::ready : Kind::progress, {}}; }
    if (event == "boot.error") { return {payload.empty() ? Kind::error_cleared : Kind::error, {}}; }
    if (event == "shutdown.progress") { return {payload == "powering off" ? Kind::powering_off : Kind::shutdown, {}}; }
    if (event == "instance.info")
    {
        const auto id = instance_id_of(payload);
        if (!id) { return {Kind::refused, id.error().message}; }
        return {Kind::instance_info, {}};
    }
    return {Kind::refused, "unknown event \"" + std::string{event.substr(0, 64)} + "\""};
}

void apply_notify(State& state, const NotifyEffect& effect, std::string_view event, std::string_view payload, std::uint64_t now_ms)
{
    switch (effect.kind)
    {
    case NotifyEffect::Kind::ready: state.ready = true; [[fallthrough]];
    case NotifyEffect::Kind::progress: state.boot_progress = payload; break;
    case NotifyEffect::Kind::error:
    case NotifyEffect::Kind::error_cleared: state.boot_error = payload; break;
    case NotifyEffect::Kind::powering_off:
        // A guest that gives up its boot has failed, not stopped: it stays wanted, and is not restarted (judge_exit).
        if (state.boot_error.empty()) { state.started = false; }
        [[fallthrough]];
    case NotifyEffect::Kind::shutdown: state.shutdown_progress = payload; break;
    case NotifyEffect::Kind::instance_info:
    case NotifyEffect::Kind::refused: break;
    }
    state.events.push_back({std::string{event}, std::string{payload}, now_ms});
    if (state.events.size() > max_guest_events) { state.events.erase(state.events.begin()); }
}

Result<std::string> instance_id_of(std::string_view instance_info)
{
    const auto bad = [](std::string why) { return Error{Errc::invalid_argument, "instance.info: " + std::move(why)}; };
    const auto document = nlohmann::json::parse(instance_info, nullptr, false);
    if (!document.is_object()) { return bad("not a JSON object"); }
    std::string out;
    for (const char* key : {"instance_id_seed", "instance_id", "app_id"})
    {
        const auto it = document.find(key);
        if (it == document.end() || it->is_null()) { continue; }
        if (!it->is_string()) { return bad(std::string{"`"} + key + "` is not a string"); }
        const auto& text = *it->get_ptr<const std::string*>();
        const auto bytes = crypto::from_hex(text);
        if (!text.empty() && (!bytes || bytes->size() > 32)) { return bad(std::string{"`"} + key + "` is not hex"); }
        if (std::string_view{key} == "instance_id") { out = text; }
    }
    return out;
}

ExitVerdict judge_exit(const ExitFacts& facts)
{
    ExitVerdict out;
    if (!facts.stop_asked.empty())
    {
        out.expected = true;
        out.how = facts.stop_asked;
        return out;
    }
    if (facts.powering_off && facts.boot_error.empty())
    {
        out.expected = true;
        out.how = "guest";
        return out;
    }
    // A panic never powers off by itself: a guest that did so has only printed the words.
    if (!facts.panic.empty() && facts.qmp_reason != "guest-shutdown") { out.reason = "kernel panic: " + facts.panic; }
    else if (!facts.boot_error.empty()) { out.reason = "boot error: " + facts.boot_error; }
    else if (facts.qmp_reason == "guest-shutdown") { out.reason = "powered off"; }
    else if (facts.qmp_reason == "guest-reset") { out.reason = "the guest reset itself"; }
    else if (facts.qmp_reason == "guest-panic") { out.reason = "kernel panic"; }
    else if (facts.qmp_reason == "host-signal") { out.reason = "qemu was ended by a signal"; }
    else if (!facts.qmp_reason.empty()) { out.reason = facts.qmp_reason; }
    else if (!facts.stderr_tail.empty()) { out.reason = "qemu ended: " + facts.stderr_tail; }
    else { out.reason = "qemu was killed or crashed"; }
    // A guest that said why it cannot boot will say the same again.
    out.may_restart = facts.boot_error.empty();
    return out;
}

std::string explain_qemu(std::string_view stderr_text)
{
    // Warnings come first; the line that says why it ended is the last one.
    const auto lines = last_lines(stderr_text, 1);
    if (lines.empty()) { return {}; }
    std::string_view line = lines.back();
    constexpr std::string_view forward = "Could not set up host forwarding rule '";
    if (const auto at = line.find(forward); at != std::string_view::npos)
    {
        std::string rule{line.substr(at + forward.size())};
        rule.resize(std::min(rule.find('\''), rule.size()));
        rule.resize(std::min(rule.find("-:"), rule.size()));
        if (const auto colon = rule.find(':'); colon != std::string::npos) { rule[colon] = ' '; }
        return "host port " + rule + " is already in use or may not be used";
    }
    constexpr std::string_view program = "qemu-system-x86_64: ";
    if (line.starts_with(program)) { line.remove_prefix(program.size()); }
    return std::string{line};
}

std::string_view last_boot(std::string_view log)
{
    const auto at = log.rfind(boot_marker);
    return at == std::string_view::npos ? log : log.substr(at);
}

namespace
{
constexpr std::string_view panic_words = "Kernel panic - not syncing: ";

/// Whether `before`, the text up to some words of a line, ends in printk's time stamp: "[    2.046987] ".
bool ends_in_time_stamp(std::string_view before)
{
    if (!before.ends_with("] ")) { return false; }
    before.remove_suffix(2);
    const auto open = before.rfind('[');
    if (open == std::string_view::npos || before.size() - open < 4) { return false; }
    return before.substr(open + 1).find_first_not_of(" .0123456789") == std::string_view::npos;
}
} // namespace

std::string panic_of(std::string_view log)
{
    constexpr std::size_t longest = 200;
    for (auto at = log.find(panic_words); at != std::string_view::npos; at = log.find(panic_words, at + 1))
    {
        const auto newline = log.rfind('\n', at);
        const std::string_view before = log.substr(newline + 1, at - newline - 1); // npos + 1 is the log's beginning
        if (!before.empty() && !ends_in_time_stamp(before)) { continue; }
        const auto from_here = log.substr(at + panic_words.size());
        const auto lines = last_lines(from_here.substr(0, std::min(from_here.find('\n'), longest)), 1);
        return lines.empty() ? std::string{"unknown"} : lines.front();
    }
    return {};
}

bool hangs_in_panic(std::string_view log)
{
    const auto lines = last_lines(log, 1);
    if (lines.empty()) { return false; }
    std::string_view line = lines.back();
    const auto at = line.find("---[ end Kernel panic - not syncing: ");
    if (at == std::string_view::npos) { return false; }
    // Nothing but the time stamp before it: an app's line begins with its service's name.
    return at == 0 || (line.front() == '[' && line.find('[', 1) > at && ends_in_time_stamp(line.substr(0, at)));
}

std::vector<std::string> last_lines(std::string_view log, std::size_t lines)
{
    constexpr std::size_t longest = 300;
    std::vector<std::string> out;
    while (!log.empty() && out.size() < lines)
    {
        while (!log.empty() && (log.back() == '\n' || log.back() == '\r')) { log.remove_suffix(1); }
        if (log.empty()) { break; }
        const auto start = log.rfind('\n');
        std::string_view line = start == std::string_view::npos ? log : log.substr(start + 1);
        std::string clean = strip_ansi(lossy_utf8(line.substr(0, longest)));
        std::erase_if(clean, [](char c) { return static_cast<unsigned char>(c) < 0x20 && c != '\t'; });
        out.push_back(std::move(clean));
        log = start == std::string_view::npos ? std::string_view{} : log.substr(0, start);
    }
    std::reverse(out.begin(), out.end());
    return out;
}

std::optional<std::uint64_t> restart_delay(const RestartPolicy& policy, std::uint32_t attempts_made)
{
    if (!policy.enabled || attempts_made >= policy.max_retries) { return std::nullopt; }
    std::uint64_t delay = policy.initial_backoff_ms;
    for (std::uint32_t i = 0; i < attempts_made && delay < policy.max_backoff_ms; ++i) { delay *= 2; }
    return std::min(delay, policy.max_backoff_ms);
}

std::string strip_ansi(std::string_view text)
{
    std::string out;
    out.reserve(text.size());
    for (std::size_t i = 0; i < text.size(); ++i)
    {
        if (text[i] != '\x1b')
        {
            out.push_back(text[i]);
            continue;
        }
        if (i + 1 >= text.size()) { break; }
        const char kind = text[++i];
        if (kind == '[') // CSI: parameters, then one final byte
        {
            while (i + 1 < text.size() && (text[i + 1] < '@' || text[i + 1] > '~')) { ++i; }
            if (i + 1 < text.size()) { ++i; }
        }
        else if (kind == ']') // OSC: up to BEL or ESC backslash
        {
            while (i + 1 < text.size() && text[i + 1] != '\a' && text[i + 1] != '\x1b') { ++i; }
            if (i + 1 < text.size() && text[i + 1] == '\a') { ++i; }
            else if (i + 2 < text.size() && text[i + 2] == '\\') { i += 2; }
        }
    }
    return out;
}

std::string lossy_utf8(std::string_view text)
{
    std::string out;
    out.reserve(text.size());
    for (std::size_t i = 0; i < text.size();)
    {
        const auto byte = static_cast<unsigned char>(text[i]);
        const std::size_t size = byte < 0x80 ? 1 : byte >= 0xc2 && byte < 0xe0 ? 2 : byte >= 0xe0 && byte < 0xf0 ? 3 : byte >= 0xf0 && byte < 0xf5 ? 4 : 0;
        bool good = size != 0 && i + size <= text.size();
        for (std::size_t k = 1; good && k < size; ++k) { good = (static_cast<unsigned char>(text[i + k]) & 0xc0) == 0x80; }
        if (good && size == 3)
        {
            const auto second = static_cast<unsigned char>(text[i + 1]);
            good = !(byte == 0xe0 && second < 0xa0) && !(byte == 0xed && second >= 0xa0);
        }
        if (good && size == 4)
        {
            const auto second = static_cast<unsigned char>(text[i + 1]);
            good = !(byte == 0xf0 && second < 0x90) && !(byte == 0xf4 && second >= 0x90);
        }
        if (good)
        {
            out.append(text.substr(i, size));
            i += size;
        }
        else
        {
            out += "\xef\xbf\xbd";
            ++i;
        }
    }
    return out;
}

} // namespace dstack::vmm
