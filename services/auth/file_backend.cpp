#include "services/auth/file_backend.hpp"
#include "services/auth/json_text.hpp"
#include "services/auth/metrics.hpp"
#include "shared/base/time.hpp"
#include "shared/log/log.hpp"

namespace dstack::auth
{

Judgement FileBackend::judge(Kind kind, const BootInfo& boot, const std::shared_ptr<const Snapshot>& snapshot) const
{
    Judgement out;
    out.ground = std::shared_ptr<const Ground>{snapshot, &snapshot->ground};
    if (snapshot->policy) { out.verdict = auth::decide(kind, boot, *snapshot->policy); }
    else
    {
        out.verdict = deny("policy", "policy is not usable: " + printable(snapshot->error) +
                                         "; every boot is denied until it is repaired");
    }
    return out;
}

std::optional<Judgement> FileBackend::decide_now(Kind kind, const BootInfo& boot)
{
    const std::shared_ptr<const Snapshot>* snapshot = policy_.looked();
    if (snapshot == nullptr) { return std::nullopt; }
    look_at(*snapshot);
    return judge(kind, boot, *snapshot);
}

Task<Judgement> FileBackend::decide(Kind kind, const BootInfo& boot)
{
    auto snapshot = co_await policy_.current();
    look_at(snapshot);
    co_return judge(kind, boot, snapshot);
}

std::shared_ptr<const Ground> FileBackend::ground() const
{
    static const auto none = std::make_shared<const Ground>();
    const std::shared_ptr<const Snapshot> snapshot = policy_.last();
    return snapshot ? std::shared_ptr<const Ground>{snapshot, &snapshot->ground} : none;
}

Task<Info> FileBackend::info()
{
    auto snapshot = co_await policy_.current();
    look_at(snapshot);
    Info out;
    if (snapshot->policy)
    {
        out.body = info_body(*snapshot->policy);
        co_return out;
    }
    out.status = 500;
    out.body = R"({"status":"error","message":)";
    append_json_string(out.body, "policy is not usable: " + printable(snapshot->error));
    out.body += '}';
    co_return out;
}

Task<Health> FileBackend::health()
{
    auto snapshot = co_await policy_.current();
    look_at(snapshot);
    Health out;
    out.policy_hash = snapshot->ground.policy_hash;
    if (!snapshot->policy) { out.trouble = printable(snapshot->error); }
    co_return out;
}

void FileBackend::append_metrics(std::string& out) const
{
    const std::shared_ptr<const Snapshot> snapshot = policy_.last();
    const bool valid = snapshot && snapshot->policy;
    append_gauge(out, "dstack_auth_policy_valid", "1 when the policy file can be used; 0: everything is denied.", valid ? "1" : "0");
    const std::uint64_t tenths = policy_.age_ms() / 100;
    append_gauge(out, "dstack_auth_policy_age_seconds", "Since the policy file was written.",
                 std::to_string(tenths / 10) + "." + std::to_string(tenths % 10));
    append_gauge(out, "dstack_auth_policy_apps", "Apps that the policy file registers.",
                 std::to_string(valid ? snapshot->policy->apps.size() : 0));
}

Task<> FileBackend::begin(bool created)
{
    auto snapshot = co_await policy_.current();
    if (ledger_ == nullptr)
    {
        if (!snapshot->policy) { log::error("policy file not usable", {{"error", snapshot->error}}); }
        co_return;
    }
    if (created || snapshot->ground.policy_hash != ledger_->last_policy_hash())
    {
        co_await note_policy(snapshot, created);
    }
}

void FileBackend::look_at(const std::shared_ptr<const Snapshot>& snapshot)
{
    if (ledger_ == nullptr) { return; }
    const std::string& hash = snapshot->ground.policy_hash;
    const bool known = hash == ledger_->last_policy_hash() || (!hash.empty() && hash == expected_hash_);
    if (known || noting_ || policy_.changing()) { return; }
    noting_ = true;
    scope_.spawn(note_policy(snapshot, false));
}

Task<> FileBackend::note_policy(std::shared_ptr<const Snapshot> snapshot, bool created)
{
    noting_ = true;
    const std::string& hash = snapshot->ground.policy_hash;
    Record record;
    record.time_ms = unix_ms();
    record.kind = "policy";
    record.policy_hash = hash;
    record.change = created ? "created" : snapshot->policy ? "external" : "invalid";
    record.reason = printable(snapshot->error);
    auto written = co_await ledger_->append(std::move(record));
    noting_ = false;
    if (created) { log::info("policy created", {{"file", policy_.path()}}); }
    else if (snapshot->policy) { log::info("policy file changed by somebody else", {{"policy", hash}}); }
    else { log::error("policy file not usable", {{"error", snapshot->error}}); }
    if (!written) { log::error("policy change not recorded", {{"error", written.error().message}}); }
}

} // namespace dstack::auth
