#include "services/auth/audit.hpp"
#include "services/auth/ledger_read.hpp"
#include "shared/base/time.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/ledger/chain.hpp"
#include <algorithm>

namespace dstack::auth
{

namespace
{

constexpr std::uint32_t max_records = 1000;
constexpr std::size_t max_reply_bytes = 768 * 1024; // of a command's answer, with its escapes
constexpr std::uint32_t max_tested = 100'000;
constexpr std::size_t max_flips = 500;

Error wrong(std::string why) { return Error{Errc::invalid_argument, std::move(why), {}, {}}; }

Result<std::string> hex_argument(const std::string& text, std::string_view name, std::size_t digits)
{
    if (text.empty()) { return std::string{}; }
    auto bytes = crypto::from_hex(text, digits / 2);
    if (!bytes) { return std::move(bytes).error().within(name); }
    return crypto::to_hex(*bytes);
}

std::vector<schema::Check> checks_of(const Verdict& verdict)
{
    std::vector<schema::Check> out;
    for (const RuleResult& rule : verdict.rules) { out.push_back({std::string{rule.rule}, rule.pass, rule.expected, rule.got}); }
    return out;
}

Kind kind_of(std::string_view kind) { return kind == "kms" ? Kind::kms : Kind::app; }

Verdict judge(Kind kind, const BootInfo& boot, const Snapshot& snapshot, std::uint64_t now_ms)
{
    if (!snapshot.policy) { return deny("policy", "policy is not usable: " + snapshot.error); }
    return decide(kind, boot, *snapshot.policy, now_ms);
}

// --- nearest ----------------------------------------------------------------------------------------------------------

std::uint32_t distance_of(std::string_view a, std::string_view b)
{
    auto out = static_cast<std::uint32_t>(std::max(a.size(), b.size()) - std::min(a.size(), b.size()));
    for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) { out += a[i] != b[i] ? 1 : 0; }
    return out;
}

std::string hex_of(const Hash& hash) { return crypto::to_hex(hash); }
std::string hex_of(const std::string& text) { return text; }

void offer(Nearest& best, const std::string& value, std::string_view wanted, std::string_view what)
{
    const std::uint32_t distance = distance_of(value, wanted);
    if (best.value.empty() || distance < best.distance) { best = {value, distance, std::string{what}}; }
}

template <class T>
void offer_all(Nearest& best, const AllowList<T>& list, std::string_view wanted, std::string_view what, std::uint64_t now_ms)
{
    for (const T& value : list.values) { offer(best, hex_of(value), wanted, what); }
    if (!list.limited) { return; }
    for (const auto& entry : list.limited->entries)
    {
        const std::string when = now_ms < entry.expires_ms ? ", allowed until " : ", whose entry expired at ";
        offer(best, hex_of(entry.value), wanted, std::string{what} + when + rfc3339(entry.expires_ms));
    }
}

/// The same hash in another app says more than a like one in the same.
Nearest nearest_app(const Policy& policy, const BootInfo& boot)
{
    Nearest best;
    Hash hash{};
    const bool known = unhex(boot.compose_hash, hash);
    for (const auto& [id, app] : policy.apps)
    {
        if (known && app.compose_hashes.contains(hash) && !app.compose_hashes.any)
        {
            return {crypto::to_hex(id), distance_of(crypto::to_hex(id), boot.app_id), "an app that the same compose hash is allowed for"};
        }
        offer(best, crypto::to_hex(id), boot.app_id, "a registered app");
    }
    return best;
}

} // namespace

Nearest nearest_allowed(const Policy& policy, Kind kind, const BootInfo& boot, std::string_view rule, std::uint64_t now_ms)
{
    Nearest best;
    AppId id{};
    const auto app = unhex(boot.app_id, id) ? policy.apps.find(id) : policy.apps.end();
    if (rule == "tcb_status") { offer_all(best, policy.tcb_statuses, boot.tcb_status, "a TCB status", now_ms); }
    else if (rule == "os_image") { offer_all(best, policy.os_images, boot.os_image_hash, "an OS image", now_ms); }
    else if (rule == "aggregated_mr") { offer_all(best, policy.kms_aggregated_mrs, boot.mr_aggregated, "an aggregated MR of a KMS", now_ms); }
    else if (rule == "app") { return nearest_app(policy, boot); }
    else if (rule == "device" && kind == Kind::kms) { offer_all(best, policy.kms_devices, boot.device_id, "a device of the KMS", now_ms); }
    else if (rule == "device" && app != policy.apps.end()) { offer_all(best, app->second.devices, boot.device_id, "a device of the same app", now_ms); }
    else if (rule == "compose_hash" && app != policy.apps.end())
    {
        offer_all(best, app->second.compose_hashes, boot.compose_hash, "a compose hash of the same app", now_ms);
    }
    return best;
}

namespace
{

/// Under the lock that all writers of the file share.
std::string edit_command(const std::string& path, const std::string& filter)
{
    return "flock " + path + ".lock sh -c \"jq '" + filter + "' " + path + " > " + path + ".new && mv " + path + ".new " + path + "\"";
}

std::string command_for(const schema::Check& check, bool is_app, const BootInfo& boot, const std::string& path)
{
    const auto quoted = [](const std::string& text) { return "[\\\"" + text + "\\\"]"; };
    if (check.rule == "app" || check.rule == "compose_hash") { return "dstack allow " + boot.compose_hash + " --app " + boot.app_id; }
    if (check.rule == "os_image") { return boot.os_image_hash.empty() ? "" : "dstack allow --image " + boot.os_image_hash; }
    if (path.empty()) { return {}; }
    if (check.rule == "tcb_status")
    {
        return boot.tcb_status.empty() ? "" : edit_command(path, ".allowedTcbStatuses = (.allowedTcbStatuses // [\\\"UpToDate\\\"]) + " + quoted(boot.tcb_status));
    }
    if (check.rule == "advisory") { return edit_command(path, ".allowedAdvisoryIds += " + quoted(check.got)); }
    if (check.rule == "aggregated_mr") { return edit_command(path, ".kms.mrAggregated += " + quoted(boot.mr_aggregated)); }
    if (check.rule == "device")
    {
        const std::string list = is_app ? ".apps[\\\"" + boot.app_id + "\\\"].devices" : std::string{".kms.devices"};
        return edit_command(path, list + " += " + quoted(boot.device_id));
    }
    return {};
}

} // namespace

std::vector<std::string> commands_to_allow(const std::vector<schema::Check>& checks, const BootInfo& boot,
                                           const std::string& policy_path)
{
    const bool is_app = std::any_of(checks.begin(), checks.end(), [](const schema::Check& check) { return check.rule == "app"; });
    std::vector<std::string> out;
    for (const schema::Check& check : checks)
    {
        if (check.pass) { continue; }
        std::string command = command_for(check, is_app, boot, policy_path);
        if (!command.empty()) { out.push_back(std::move(command)); }
    }
    return out;
}

// --- records ----------------------------------------------------------------------------------------------------------

namespace
{

/// What a line must hold, looked for before it is parsed.
class RecordFilter
{
  public:
    RecordFilter(const schema::AuthAudit& question, std::string app_id) : question_(question), app_id_(std::move(app_id)) {}
    /// A record that is older than `since_ms` ends the search: times do not run backwards in a ledger, but clocks may.
    bool wants(std::string_view line, const Entry& entry) const
    {
        const bool decision = entry.decision.sequence != 0;
        if (question_.since_ms != 0 && entry.time_ms < question_.since_ms) { return false; }
        if (!question_.kind.empty() && entry.kind != question_.kind) { return false; }
        if (question_.denied && (!decision || entry.decision.allowed)) { return false; }
        if (question_.allowed && (!decision || !entry.decision.allowed)) { return false; }
        if (app_id_.empty()) { return true; }
        return is_of_app(line, app_id_) && (entry.decision.app_id == app_id_ || entry.change.app_id == app_id_);
    }
    bool may_want(std::string_view line) const
    {
        if (!app_id_.empty() && !is_of_app(line, app_id_)) { return false; }
        if (question_.denied && line.find("\"allowed\":false") == std::string_view::npos) { return false; }
        if (question_.allowed && line.find("\"allowed\":true") == std::string_view::npos) { return false; }
        return question_.kind.empty() || line.substr(0, 100).find(question_.kind) != std::string_view::npos;
    }

  private:
    const schema::AuthAudit& question_;
    std::string app_id_;
};

constexpr std::uint64_t clock_slack_ms = 600'000;

} // namespace

Result<schema::AuthAudit::Reply> find_records(const LedgerSnapshot& ledger, const schema::AuthAudit& question)
{
    if (question.limit < 1 || question.limit > max_records) { return wrong("limit: must be in 1..1000"); }
    auto app_id = hex_argument(question.app_id, "app_id", 40);
    if (!app_id) { return std::move(app_id).error(); }
    schema::AuthAudit::Reply out;
    out.newest = ledger.newest;
    if (question.sequence != 0)
    {
        auto line = read_line(ledger, question.sequence);
        if (!line) { return std::move(line).error(); }
        out.records.push_back(std::move(*line));
        return out;
    }
    const RecordFilter filter{question, std::move(*app_id)};
    const bool backwards = question.from == 0;
    EntryReader entries;
    std::optional<Error> failed;
    std::size_t bytes = 0;
    std::uint64_t last = 0;
    const auto take = [&](std::string_view line)
    {
        const auto link = ledger::read_link(line);
        if (!link)
        {
            failed = link.error();
            return false;
        }
        last = link->sequence;
        const bool dated = backwards && question.since_ms != 0 && last % 64 == 0; // now and then, whether the rest is too old
        if (!filter.may_want(line) && !dated) { return true; }
        auto entry = entries.read(line);
        if (!entry)
        {
            failed = std::move(entry).error().within("record " + std::to_string(last));
            return false;
        }
        if (backwards && question.since_ms != 0 && entry->time_ms + clock_slack_ms < question.since_ms)
        {
            last = 1;
            return false;
        }
        if (!filter.wants(line, *entry)) { return true; }
        bytes += line.size() + line.size() / 4;
        out.records.emplace_back(line);
        return out.records.size() < question.limit && bytes < max_reply_bytes;
    };
    auto scanned = backwards ? scan_backwards(ledger, question.before, max_scan, take) : scan_forwards(ledger, question.from, max_scan, take);
    if (failed) { return *failed; }
    if (!scanned) { return std::move(scanned).error(); }
    if (backwards) { out.next = last > 1 ? last : 0; }
    else { out.next = last != 0 && last < ledger.newest ? last + 1 : 0; }
    return out;
}

// --- why --------------------------------------------------------------------------------------------------------------

namespace
{

Result<std::string> newest_decision(const LedgerSnapshot& ledger, const std::string& app_id, const std::string& instance_id)
{
    EntryReader entries;
    std::string found;
    const std::string& wanted = instance_id.empty() ? app_id : instance_id;
    const auto take = [&](std::string_view line)
    {
        if (!is_decision(line) || line.find(wanted) == std::string_view::npos) { return true; }
        const auto entry = entries.read(line);
        const bool same = entry && (app_id.empty() || entry->decision.app_id == app_id) &&
                          (instance_id.empty() || entry->decision.instance_id == instance_id);
        if (same) { found = line; }
        return !same;
    };
    auto scanned = scan_backwards(ledger, 0, max_scan, take);
    if (!scanned) { return std::move(scanned).error(); }
    if (!found.empty()) { return found; }
    return Error{Errc::not_found,
                 instance_id.empty() ? "the KMS never asked about app " + app_id : "the KMS never asked about instance " + instance_id,
                 "it asks when a VM boots and wants keys: `dstack logs APP` says how far that came", {}};
}

/// The records about the policy that are behind a decision.
struct Causes
{
    std::string policy_record;
    std::string allowed_by;
    std::string revoked_by;
    bool complete = true;
};

Result<Causes> causes_of(const LedgerSnapshot& ledger, const schema::Decision& decision)
{
    Causes out;
    EntryReader entries;
    const auto take = [&](std::string_view line)
    {
        if (line.substr(0, 100).find("\"kind\":\"policy\"") == std::string_view::npos) { return true; }
        const auto entry = entries.read(line);
        if (!entry) { return true; }
        if (out.policy_record.empty() && entry->policy_hash == decision.policy_hash) { out.policy_record = line; }
        const schema::AuthPolicyChanged& change = entry->change;
        const bool same_app = change.app_id == decision.app_id && !decision.app_id.empty();
        const bool same_hash = change.compose_hash == decision.compose_hash || change.compose_hash.empty();
        if (same_app && same_hash && change.change == "allow_app" && out.allowed_by.empty()) { out.allowed_by = line; }
        if (same_app && same_hash && change.change == "revoke_app" && out.revoked_by.empty() && out.allowed_by.empty()) { out.revoked_by = line; }
        return out.policy_record.empty() || out.allowed_by.empty();
    };
    auto scanned = scan_backwards(ledger, decision.sequence, max_scan, take);
    if (!scanned) { return std::move(scanned).error(); }
    out.complete = *scanned;
    return out;
}

} // namespace

Result<schema::AuthExplain::Reply> explain(const LedgerSnapshot& ledger, const schema::AuthExplain& question,
                                           const std::shared_ptr<const Snapshot>& policy, const std::string& policy_path)
{
    auto app_id = hex_argument(question.app_id, "app_id", 40);
    if (!app_id) { return std::move(app_id).error(); }
    auto instance_id = hex_argument(question.instance_id, "instance_id", 40);
    if (!instance_id) { return std::move(instance_id).error(); }
    if (question.sequence == 0 && app_id->empty() && instance_id->empty()) { return wrong("sequence, app_id or instance_id is needed"); }
    auto line = question.sequence != 0 ? read_line(ledger, question.sequence) : newest_decision(ledger, *app_id, *instance_id);
    if (!line) { return std::move(line).error(); }
    EntryReader reader;
    auto decided = reader.read_decision(*line);
    if (!decided) { return std::move(decided).error(); }
    if (decided->entry.decision.sequence == 0)
    {
        return wrong("record " + std::to_string(decided->entry.sequence) + " is no decision: its kind is " + decided->entry.kind)
            .with_hint("`dstack audit show " + std::to_string(decided->entry.sequence) + "` shows it");
    }
    auto causes = causes_of(ledger, decided->entry.decision);
    if (!causes) { return std::move(causes).error(); }
    schema::AuthExplain::Reply out;
    out.record = std::move(*line);
    out.checks = decided->checks;
    out.policy_record = std::move(causes->policy_record);
    out.allowed_by = std::move(causes->allowed_by);
    out.revoked_by = std::move(causes->revoked_by);
    out.complete = causes->complete;
    if (!policy || !decided->boot) { return out; }
    const BootInfo& boot = *decided->boot;
    const Kind kind = kind_of(decided->entry.kind);
    const std::uint64_t now_ms = unix_ms();
    const Verdict now = judge(kind, boot, *policy, now_ms);
    out.same_policy = policy->ground.policy_hash == decided->entry.policy_hash;
    out.allowed_now = now.allowed;
    out.rule_now = now.rule;
    out.reason_now = now.reason;
    if (now.allowed || !policy->policy) { return out; }
    Nearest nearest = nearest_allowed(*policy->policy, kind, boot, now.rule, now_ms);
    out.nearest = std::move(nearest.value);
    out.nearest_distance = nearest.distance;
    out.nearest_is = std::move(nearest.what);
    out.commands = commands_to_allow(checks_of(now), boot, policy_path);
    return out;
}

// --- policy test ------------------------------------------------------------------------------------------------------

namespace
{

using TestReply = schema::AuthTestPolicy::Reply;
using Tested = schema::AuthTestPolicy::Tested;

/// Decides with one policy, counts, and keeps what is told.
class Replay
{
  public:
    Replay(const Snapshot& policy, TestReply& out) : policy_(policy), out_(out) { out_.policy_hash = policy.ground.policy_hash; }
    /// `keep`: also when nothing flips, with every check.
    void add(const Decided& decided, bool keep)
    {
        if (!decided.boot)
        {
            ++out_.skipped;
            return;
        }
        const schema::Decision& was = decided.entry.decision;
        const Verdict now = judge(kind_of(decided.entry.kind), *decided.boot, policy_, now_ms_);
        ++out_.tested;
        out_.allowed += now.allowed ? 1 : 0;
        const bool flips = now.allowed != was.allowed;
        if (flips) { ++(now.allowed ? out_.to_allowed : out_.to_denied); }
        if (!keep && (!flips || out_.results.size() == max_flips)) { return; }
        out_.results.push_back({was.sequence, was.time, decided.entry.kind, decided.boot->app_id, decided.boot->compose_hash, was.allowed,
                                now.allowed, now.rule, now.reason, keep ? checks_of(now) : std::vector<schema::Check>{}});
    }

  private:
    const Snapshot& policy_;
    TestReply& out_;
    std::uint64_t now_ms_ = unix_ms();
};

Result<Done> replay_last(const LedgerSnapshot& ledger, std::uint32_t last, Replay& replay)
{
    EntryReader reader;
    std::optional<Error> failed;
    std::uint32_t left = last;
    const auto take = [&](std::string_view line)
    {
        if (!is_decision(line)) { return true; }
        auto decided = reader.read_decision(line);
        if (!decided)
        {
            failed = std::move(decided).error();
            return false;
        }
        replay.add(*decided, false);
        return --left > 0;
    };
    auto scanned = scan_backwards(ledger, 0, max_scan, take);
    if (failed) { return *failed; }
    if (!scanned) { return std::move(scanned).error(); }
    return Done{};
}

/// The boot of a body, as if the policy in force had decided it.
Result<Decided> boot_of_body(const schema::AuthTestPolicy& question, const std::shared_ptr<const Snapshot>& policy)
{
    BootInfoReader reader;
    auto boot = reader.read(question.boot_info);
    if (!boot) { return std::move(boot).error().within("boot_info"); }
    Decided out;
    out.entry.kind = question.kind.empty() ? "app" : question.kind;
    if (policy) { out.entry.decision.allowed = judge(kind_of(out.entry.kind), *boot, *policy, unix_ms()).allowed; }
    out.boot = std::move(*boot);
    return out;
}

} // namespace

Result<TestReply> test_policy(const LedgerSnapshot& ledger, const schema::AuthTestPolicy& question,
                              const std::shared_ptr<const Snapshot>& policy)
{
    const int ways = (question.boot_info.empty() ? 0 : 1) + (question.sequence == 0 ? 0 : 1) + (question.last == 0 ? 0 : 1);
    if (ways != 1) { return wrong("one of boot_info, sequence and last is needed"); }
    if (question.last > max_tested) { return wrong("last: must be in 1..100000"); }
    if (!question.kind.empty() && question.kind != "app" && question.kind != "kms") { return wrong("kind: must be app or kms"); }
    Snapshot brought;
    if (!question.policy.empty())
    {
        auto parsed = parse_policy(question.policy);
        if (!parsed) { return std::move(parsed).error().within("policy"); }
        brought.policy = std::move(*parsed);
        brought.ground.policy_hash = crypto::to_hex(crypto::sha256(question.policy));
    }
    else if (!policy)
    {
        return Error{Errc::failed_precondition, "the policy is not in a file: a contract on a chain decides", "test a policy of your own: --with FILE", {}};
    }
    TestReply out;
    Replay replay{question.policy.empty() ? *policy : brought, out};
    if (question.last != 0)
    {
        auto done = replay_last(ledger, question.last, replay);
        if (!done) { return std::move(done).error(); }
        return out;
    }
    Decided decided;
    if (!question.boot_info.empty())
    {
        auto boot = boot_of_body(question, policy);
        if (!boot) { return std::move(boot).error(); }
        decided = std::move(*boot);
    }
    else
    {
        auto line = read_line(ledger, question.sequence);
        if (!line) { return std::move(line).error(); }
        EntryReader reader;
        auto read = reader.read_decision(*line);
        if (!read) { return std::move(read).error(); }
        if (!read->boot) { return wrong("record " + std::to_string(question.sequence) + " holds no boot"); }
        decided = std::move(*read);
    }
    replay.add(decided, true);
    return out;
}

} // namespace dstack::auth
