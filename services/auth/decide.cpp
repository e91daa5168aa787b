#include "services/auth/decide.hpp"
#include "services/auth/json_text.hpp"
#include "shared/base/time.hpp"
#include "shared/crypto/hex.hpp"
#include <algorithm>

namespace dstack::auth
{

namespace
{

constexpr std::size_t max_shown = 3;

std::string text_of(const Hash& hash) { return crypto::to_hex(hash); }
const std::string& text_of(const std::string& word) { return word; }

std::string or_none(std::string_view text) { return text.empty() ? "none" : std::string{text}; }

/// "until 2026-12-24T18:00:00.000Z"
std::string until(std::uint64_t time_ms) { return "until " + rfc3339(time_ms); }

template <class T>
std::string expectation(const AllowList<T>& list, std::uint64_t now_ms)
{
    if (list.any) { return "any"; }
    if (list.limited && now_ms < list.limited->any_until_ms) { return "any, " + until(list.limited->any_until_ms); }
    std::size_t count = list.values.size();
    std::size_t shown = 0;
    std::string out;
    for (; shown < list.values.size() && shown < max_shown; ++shown)
    {
        (out += shown == 0 ? "" : ", ") += text_of(list.values[shown]);
    }
    if (list.limited)
    {
        for (const auto& entry : list.limited->entries)
        {
            if (now_ms >= entry.expires_ms) { continue; }
            ++count;
            if (shown == max_shown) { continue; }
            (out += shown++ == 0 ? "" : ", ") += text_of(entry.value) + " " + until(entry.expires_ms);
        }
    }
    if (count == 0) { return list.empty() ? "nothing, as the list is empty" : "nothing, as every entry has expired"; }
    if (count > shown) { out += ", ..."; }
    return count == 1 ? out : "one of " + std::to_string(count) + ": " + out;
}

/// When what would have allowed `value` ended; 0: nothing would have.
template <class T>
std::uint64_t ended_at(const AllowList<T>& list, const T& value)
{
    if (!list.limited) { return 0; }
    const Temporary<T>* entry = list.temporary(value);
    return std::max(entry != nullptr ? entry->expires_ms : 0, list.limited->any_until_ms);
}

/// Collects the checks; the first that fails makes the reason.
class Checks
{
  public:
    explicit Checks(std::uint64_t now_ms) : now_ms_(now_ms) { verdict_.rules.reserve(6); }

    void pass(std::string_view rule, std::string expected, std::string got)
    {
        verdict_.rules.push_back({rule, true, std::move(expected), std::move(got)});
    }
    /// `fix` makes the text only when it is needed.
    template <class Fix>
    void fail(std::string_view rule, std::string expected, std::string got, std::string_view reason,
              std::uint64_t ended_ms, Fix fix)
    {
        if (verdict_.reason.empty())
        {
            verdict_.rule = rule;
            verdict_.reason = reason;
            if (ended_ms != 0) { verdict_.reason += ": its entry expired at " + rfc3339(ended_ms); }
            verdict_.reason += " (rule " + std::string{rule} + ": expected " + expected + "; got " + got +
                               "; to allow it: " + fix() + ")";
        }
        verdict_.rules.push_back({rule, false, std::move(expected), std::move(got)});
    }
    template <class T, class Fix>
    void add(std::string_view rule, const AllowList<T>& list, const T& value, const std::string& text,
             std::string_view reason, Fix fix)
    {
        const bool allowed = list.allows(value, now_ms_);
        if (allowed && !list.any && !list.limited && list.values.size() == 1) { pass(rule, text, text); }
        else if (allowed) { pass(rule, expectation(list, now_ms_), text); }
        else { fail(rule, expectation(list, now_ms_), or_none(text), reason, ended_at(list, value), fix); }
    }
    /// The same of a hash: what is none (an empty osImageHash) passes only where any does.
    template <class Fix>
    void add_hash(std::string_view rule, const AllowList<Hash>& list, const std::string& hex, std::string_view reason,
                  Fix fix)
    {
        Hash hash{};
        if (unhex(hex, hash)) { return add(rule, list, hash, hex, reason, fix); }
        const bool any = list.any || (list.limited && now_ms_ < list.limited->any_until_ms);
        if (any) { return pass(rule, expectation(list, now_ms_), "none"); }
        fail(rule, expectation(list, now_ms_), "none", reason, 0, fix);
    }
    std::uint64_t now_ms() const { return now_ms_; }
    Verdict finish()
    {
        verdict_.allowed = verdict_.reason.empty() && !verdict_.rules.empty();
        if (verdict_.allowed) { verdict_.rule = verdict_.rules.back().rule; }
        return std::move(verdict_);
    }

  private:
    Verdict verdict_;
    std::uint64_t now_ms_;
};

void check_tcb(const BootInfo& boot, const Policy& policy, Checks& checks)
{
    const auto fix = [] { return std::string{"update the platform, or add it to allowedTcbStatuses in the policy file"}; };
    checks.add("tcb_status", policy.tcb_statuses, boot.tcb_status, boot.tcb_status, "TCB status is not allowed", fix);
}

void check_advisories(const BootInfo& boot, const AllowList<std::string>& allowed, Checks& checks)
{
    const std::string* refused = nullptr;
    for (const std::string& id : boot.advisory_ids)
    {
        if (refused == nullptr && !allowed.allows(id, checks.now_ms())) { refused = &id; }
    }
    if (boot.advisory_ids.empty()) { return checks.pass("advisory", "none", "none"); }
    std::string expected = expectation(allowed, checks.now_ms());
    if (refused == nullptr)
    {
        return checks.pass("advisory", std::move(expected), std::to_string(boot.advisory_ids.size()) + ", all allowed");
    }
    const auto fix = [] { return std::string{"update the platform, or add it to allowedAdvisoryIds in the policy file"}; };
    checks.fail("advisory", std::move(expected), refused->empty() ? "an empty id" : *refused, "advisory ID is not allowed",
                ended_at(allowed, *refused), fix);
}

void check_app(const BootInfo& boot, const Policy& policy, Checks& checks)
{
    const auto allow = [&boot] { return "run `dstack allow " + boot.compose_hash + " --app " + boot.app_id + "`"; };
    const auto device = [] { return std::string{"add it to the app's devices in the policy file, or set allowAnyDevice"}; };
    AppId id{};
    const auto found = unhex(boot.app_id, id) ? policy.apps.find(id) : policy.apps.end();
    if (found == policy.apps.end())
    {
        const std::string expected = "one of " + std::to_string(policy.apps.size()) + " registered apps";
        return checks.fail("app", policy.apps.empty() ? "nothing, as no app is registered" : expected, boot.app_id,
                           "app not registered", 0, allow);
    }
    checks.pass("app", "a registered app", boot.app_id);
    checks.add_hash("compose_hash", found->second.compose_hashes, boot.compose_hash, "compose hash not allowed", allow);
    checks.add("device", found->second.devices, boot.device_id, boot.device_id,
               "app is not allowed to boot on this device", device);
}

void check_kms(const BootInfo& boot, const Policy& policy, Checks& checks)
{
    const auto mr = [] { return std::string{"add it to kms.mrAggregated in the policy file"}; };
    const auto device = [] { return std::string{"add it to kms.devices in the policy file, or set kms.allowAnyDevice"}; };
    checks.add_hash("aggregated_mr", policy.kms_aggregated_mrs, boot.mr_aggregated, "aggregated MR not allowed", mr);
    checks.add("device", policy.kms_devices, boot.device_id, boot.device_id, "KMS is not allowed to boot on this device",
               device);
}

} // namespace

Verdict decide(Kind kind, const BootInfo& boot, const Policy& policy, std::uint64_t now_ms)
{
    Checks checks{now_ms};
    check_tcb(boot, policy, checks);
    check_advisories(boot, policy.advisory_ids, checks);
    const auto image = [&boot]
    {
        return boot.os_image_hash.empty() ? std::string{"boot an image that has a hash"}
                                          : "run `dstack allow --image " + boot.os_image_hash + "`";
    };
    checks.add_hash("os_image", policy.os_images, boot.os_image_hash, "OS image is not allowed", image);
    if (kind == Kind::app) { check_app(boot, policy, checks); }
    else { check_kms(boot, policy, checks); }
    return checks.finish();
}

Verdict decide(Kind kind, const BootInfo& boot, const Policy& policy) { return decide(kind, boot, policy, unix_ms()); }

Verdict deny(std::string_view rule, std::string reason)
{
    Verdict out;
    out.rule = rule;
    out.reason = std::move(reason);
    return out;
}

std::string answer_body(const Verdict& verdict, std::string_view gateway_app_id)
{
    std::string out;
    out.reserve(80 + gateway_app_id.size() + verdict.reason.size());
    out += verdict.allowed ? R"({"isAllowed":true,"gatewayAppId":)" : R"({"isAllowed":false,"gatewayAppId":)";
    append_json_string(out, gateway_app_id);
    out += R"(,"reason":)";
    append_json_string(out, verdict.reason);
    out += '}';
    return out;
}

std::string info_body(const Policy& policy)
{
    std::string out = R"({"status":"ok","kmsContractAddr":)";
    append_json_string(out, policy.kms_contract_address);
    out += R"(,"gatewayAppId":)";
    append_json_string(out, policy.gateway_app_id);
    out += R"(,"chainId":)" + std::to_string(policy.chain_id);
    out += R"(,"appAuthImplementation":)";
    append_json_string(out, policy.app_implementation);
    out += R"(,"appImplementation":)";
    append_json_string(out, policy.app_implementation);
    out += '}';
    return out;
}

} // namespace dstack::auth
