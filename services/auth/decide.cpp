#include "services/auth/decide.hpp"
#include "services/auth/json_text.hpp"
#include "shared/crypto/hex.hpp"

namespace dstack::auth
{

namespace
{

constexpr std::string_view deploy_fix = "deploy it with `dstack deploy` without --no-allow";
constexpr std::size_t max_shown = 3;

std::string text_of(const Hash& hash) { return crypto::to_hex(hash); }
const std::string& text_of(const std::string& word) { return word; }

template <class T>
std::string expectation(const AllowList<T>& list)
{
    if (list.any) { return "any"; }
    if (list.values.empty()) { return "nothing, as the list is empty"; }
    std::string out = list.values.size() == 1 ? "" : "one of " + std::to_string(list.values.size()) + ": ";
    for (std::size_t i = 0; i < list.values.size() && i < max_shown; ++i)
    {
        (out += i == 0 ? "" : ", ") += text_of(list.values[i]);
    }
    if (list.values.size() > max_shown) { out += ", ..."; }
    return out;
}

std::string or_none(std::string_view text) { return text.empty() ? "none" : std::string{text}; }

/// Collects the checks; the first that fails makes the reason.
class Checks
{
  public:
    void add(std::string_view rule, bool pass, std::string expected, std::string got, std::string_view reason,
             std::string_view fix)
    {
        if (!pass && verdict_.reason.empty())
        {
            verdict_.rule = rule;
            verdict_.reason = std::string{reason} + " (rule " + std::string{rule} + ": expected " + expected +
                              "; got " + got + "; to allow it: " + std::string{fix} + ")";
        }
        verdict_.rules.push_back({rule, pass, std::move(expected), std::move(got)});
    }
    void add(std::string_view rule, const AllowList<Hash>& list, const std::string& hex, std::string_view reason,
             std::string_view fix)
    {
        Hash hash{};
        const bool pass = list.any || (unhex(hex, hash) && list.contains(hash));
        add(rule, pass, expectation(list), or_none(hex), reason, fix);
    }
    void add(std::string_view rule, const AllowList<std::string>& list, const std::string& word,
             std::string_view reason, std::string_view fix)
    {
        add(rule, list.contains(word), expectation(list), or_none(word), reason, fix);
    }
    Verdict finish()
    {
        verdict_.allowed = verdict_.reason.empty() && !verdict_.rules.empty();
        if (verdict_.allowed) { verdict_.rule = verdict_.rules.back().rule; }
        return std::move(verdict_);
    }

  private:
    Verdict verdict_;
};

void check_advisories(const BootInfo& boot, const AllowList<std::string>& allowed, Checks& checks)
{
    std::string refused;
    for (const std::string& id : boot.advisory_ids)
    {
        if (refused.empty() && !allowed.contains(id)) { refused = id.empty() ? "an empty id" : id; }
    }
    std::string got = "none";
    if (!refused.empty()) { got = refused; }
    else if (!boot.advisory_ids.empty()) { got = std::to_string(boot.advisory_ids.size()) + ", all allowed"; }
    checks.add("advisory", refused.empty(), expectation(allowed), std::move(got), "advisory ID is not allowed",
               "update the platform, or add it to allowedAdvisoryIds in the policy file");
}

void check_app(const BootInfo& boot, const Policy& policy, Checks& checks)
{
    AppId id{};
    const auto found = unhex(boot.app_id, id) ? policy.apps.find(id) : policy.apps.end();
    if (found == policy.apps.end())
    {
        checks.add("app", false, "one of " + std::to_string(policy.apps.size()) + " registered apps", boot.app_id,
                   "app not registered", deploy_fix);
        return;
    }
    checks.add("app", true, "a registered app", boot.app_id, "", "");
    checks.add("compose_hash", found->second.compose_hashes, boot.compose_hash, "compose hash not allowed", deploy_fix);
    checks.add("device", found->second.devices, boot.device_id, "app is not allowed to boot on this device",
               "add it to the app's devices in the policy file, or set allowAnyDevice");
}

} // namespace

Verdict decide(Kind kind, const BootInfo& boot, const Policy& policy)
{
    Checks checks;
    checks.add("tcb_status", policy.tcb_statuses, boot.tcb_status, "TCB status is not allowed",
               "update the platform, or add it to allowedTcbStatuses in the policy file");
    check_advisories(boot, policy.advisory_ids, checks);
    checks.add("os_image", policy.os_images, boot.os_image_hash, "OS image is not allowed",
               "add it to osImages in the policy file");
    if (kind == Kind::app) { check_app(boot, policy, checks); }
    else
    {
        checks.add("aggregated_mr", policy.kms_aggregated_mrs, boot.mr_aggregated, "aggregated MR not allowed",
                   "add it to kms.mrAggregated in the policy file");
        checks.add("device", policy.kms_devices, boot.device_id, "KMS is not allowed to boot on this device",
                   "add it to kms.devices in the policy file, or set kms.allowAnyDevice");
    }
    return checks.finish();
}

Verdict deny(std::string_view rule, std::string reason)
{
    Verdict out;
    out.rule = rule;
    out.reason = std::move(reason);
    return out;
}

std::string answer_body(const Verdict& verdict, std::string_view gateway_app_id)
{
    std::string out =
        verdict.allowed ? R"({"isAllowed":true,"gatewayAppId":)" : R"({"isAllowed":false,"gatewayAppId":)";
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
