#include "services/guest-agent/boot_plan.hpp"
#include "shared/attestation/simulated.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include <algorithm>
#include <nlohmann/json.hpp>

namespace dstack::guest
{

namespace
{

using nlohmann::json;

Error invalid(std::string what, std::string hint = {})
{
    return {Errc::invalid_argument, std::move(what), std::move(hint), {}};
}

Result<json> object(std::string_view name, std::string_view text)
{
    json out = json::parse(text, nullptr, false);
    if (out.is_discarded() || !out.is_object()) { return invalid(std::string{name} + " is not a JSON object"); }
    return out;
}

/// A string, or `otherwise` when absent or null; anything else is refused by the caller through `bad`.
std::string text(const json& object, const char* key, std::string otherwise, std::string& bad)
{
    const auto found = object.find(key);
    if (found == object.end() || found->is_null()) { return otherwise; }
    if (!found->is_string())
    {
        bad = key;
        return otherwise;
    }
    return found->get<std::string>();
}

bool flag(const json& object, const char* key, bool otherwise, std::string& bad)
{
    const auto found = object.find(key);
    if (found == object.end() || found->is_null()) { return otherwise; }
    if (!found->is_boolean())
    {
        bad = key;
        return otherwise;
    }
    return found->get<bool>();
}

std::vector<std::string> texts(const json& object, const char* key, std::string& bad)
{
    std::vector<std::string> out;
    const auto found = object.find(key);
    if (found == object.end() || found->is_null()) { return out; }
    if (!found->is_array())
    {
        bad = key;
        return out;
    }
    for (const json& item : *found)
    {
        if (!item.is_string())
        {
            bad = key;
            return out;
        }
        out.push_back(item.get<std::string>());
    }
    return out;
}

bool empty_value(const json& value)
{
    return value.is_null() || (value.is_string() && value.get_ref<const std::string&>().empty()) ||
           ((value.is_array() || value.is_object()) && value.empty()) || value == 0;
}

/// Numbers 1 and 2, or a canonical positive integer as text, at most 3 (B.5).
bool known_manifest(const json& version)
{
    if (version.is_number_integer()) { return version == 1 || version == 2; }
    return version.is_string() && (version == "1" || version == "2" || version == "3");
}

Result<KeyProvider> key_provider(const json& compose, std::string& bad)
{
    std::string name = text(compose, "key_provider", "", bad);
    if (name.empty())
    {
        if (flag(compose, "kms_enabled", false, bad)) { name = "kms"; }
        else { name = flag(compose, "local_key_provider_enabled", false, bad) ? "local" : "none"; }
    }
    if (name == "kms") { return KeyProvider::kms; }
    if (name == "none") { return KeyProvider::none; }
    return invalid("app-compose.json: the key provider '" + name.substr(0, 40) +
                       "' does not exist in the development guest",
                   "use kms or none");
}

Result<Done> read_app_compose(const Share& share, BootPlan& plan)
{
    auto parsed = object("app-compose.json", share.app_compose);
    if (!parsed) { return std::move(parsed).error(); }
    const json& compose = *parsed;
    std::string bad;
    if (!compose.contains("manifest_version") || !known_manifest(compose["manifest_version"]))
    {
        return invalid("app-compose.json: manifest_version is missing or not one of 1, 2, \"3\"");
    }
    const std::string runner = text(compose, "runner", "", bad);
    if (runner != "docker-compose" && runner != "nerdctl-compose")
    {
        return invalid("app-compose.json: the runner '" + runner.substr(0, 40) +
                           "' is not supported by the development guest",
                       "use docker-compose");
    }
    plan.app_name = text(compose, "name", "", bad);
    plan.compose_file = text(compose, "docker_compose_file", "", bad);
    plan.public_tcbinfo = flag(compose, "public_tcbinfo", true, bad);
    plan.allowed_envs = texts(compose, "allowed_envs", bad);
    auto provider = key_provider(compose, bad);
    if (!provider) { return std::move(provider).error(); }
    plan.key_provider = *provider;

    // Leaving these out would run another app than the one that was measured.
    for (const char* key :
         {"init_script", "pre_launch_script", "bash_script", "verity_volumes", "swap_size", "storage_fs"})
    {
        if (compose.contains(key) && !empty_value(compose[key]))
        {
            return invalid(std::string{"app-compose.json: "} + key + " is not supported by the development guest",
                           "remove it, or use a production image");
        }
    }
    if (flag(compose, "secure_time", true, bad))
    {
        plan.warnings.emplace_back("secure_time is not done: the clock is the host's");
    }
    if (flag(compose, "gateway_enabled", false, bad) || flag(compose, "tproxy_enabled", false, bad))
    {
        plan.warnings.emplace_back("gateway_enabled is not done: the app has no ingress route");
    }
    if (!bad.empty()) { return invalid("app-compose.json: " + bad + " has the wrong type"); }
    if (plan.compose_file.empty()) { return invalid("app-compose.json: docker_compose_file is missing or empty"); }
    return Done{};
}

Result<Done> read_sys_config(const Share& share, BootPlan& plan)
{
    auto parsed = object(".sys-config.json", share.sys_config);
    if (!parsed) { return std::move(parsed).error(); }
    std::string bad;
    plan.kms_urls = texts(*parsed, "kms_urls", bad);
    plan.host_api_url = text(*parsed, "host_api_url", "", bad);
    plan.vm_config = text(*parsed, "vm_config", "", bad);
    if (!bad.empty()) { return invalid(".sys-config.json: " + bad + " has the wrong type"); }
    while (plan.host_api_url.ends_with('/')) { plan.host_api_url.pop_back(); }
    if (!plan.host_api_url.empty() && !plan.host_api_url.starts_with("http://"))
    {
        plan.warnings.push_back("the host API " + plan.host_api_url.substr(0, 100) +
                                " is not reachable from a development guest: nothing is reported");
        plan.host_api_url.clear();
    }
    if (const json vm = json::parse(plan.vm_config, nullptr, false); vm.is_object())
    {
        plan.os_image_hash = text(vm, "os_image_hash", "", bad);
    }
    if (plan.key_provider == KeyProvider::kms && plan.kms_urls.empty())
    {
        return invalid("no KMS URLs are set, and the app's key provider is kms",
                       "start the VM with a KMS URL, or deploy with key_provider none");
    }
    return Done{};
}

struct Instance
{
    std::string seed, app_id;
};

Result<Instance> read_instance(const Share& share)
{
    if (!share.instance_info) { return Instance{}; }
    auto parsed = object(".instance_info", *share.instance_info);
    if (!parsed) { return std::move(parsed).error(); }
    std::string bad;
    Instance out{text(*parsed, "instance_id_seed", "", bad), text(*parsed, "app_id", "", bad)};
    if (!bad.empty()) { return invalid(".instance_info: " + bad + " has the wrong type"); }
    if (!out.seed.empty() && !crypto::from_hex(out.seed))
    {
        return invalid(".instance_info: instance_id_seed is not hex");
    }
    return out;
}

/// The instance's identity, and whether the host's signed statement is about this very app.
Result<Done> settle_identity(const Share& share, const Instance& given, const crypto::Bytes20& fresh_seed,
                             bool no_instance_id, BootPlan& plan)
{
    plan.app_id = given.app_id;
    if (share.simulator)
    {
        auto claims = attestation::peek_claims(*share.simulator);
        if (!claims) { return std::move(claims).error().within(".tee-simulator.json"); }
        plan.simulated = true;
        if (claims->compose_hash != plan.compose_hash)
        {
            return Error{Errc::failed_precondition,
                         "app-compose.json has the compose hash " + plan.compose_hash +
                             ", but this VM was started for " + claims->compose_hash,
                         "the file on the host share was changed after the VM was measured: start the VM again",
                         {}};
        }
        if (plan.app_id.empty()) { plan.app_id = claims->app_id; }
        if (claims->app_id != plan.app_id)
        {
            return Error{Errc::failed_precondition,
                         ".instance_info has the app id " + plan.app_id.substr(0, 80) +
                             ", but this VM was started for " + claims->app_id,
                         {},
                         {}};
        }
        plan.os_image_hash = claims->os_image_hash;
        plan.instance_id = claims->instance_id;
    }
    if (plan.app_id.empty()) { plan.app_id = plan.compose_hash.substr(0, 40); }
    if (no_instance_id)
    {
        plan.instance_id.clear();
        return Done{};
    }
    plan.instance_seed = given.seed;
    if (plan.instance_seed.empty() && plan.instance_id.empty()) { plan.instance_seed = crypto::to_hex(fresh_seed); }
    if (plan.instance_seed.empty()) { return Done{}; }
    const auto seed = crypto::from_hex(plan.instance_seed);
    const auto app = crypto::from_hex(plan.app_id);
    if (!seed || !app)
    {
        return invalid("the app id '" + plan.app_id.substr(0, 80) + "' is not hex, so there is no instance id");
    }
    const std::string computed = attestation::make_instance_id(*seed, *app);
    if (!plan.instance_id.empty() && plan.instance_id != computed)
    {
        return Error{Errc::failed_precondition,
                     "the seed in .instance_info gives the instance id " + computed + ", but this VM was started for " +
                         plan.instance_id,
                     {},
                     {}};
    }
    plan.instance_id = computed;
    return Done{};
}

} // namespace

Result<BootPlan> plan_boot(const Share& share, const crypto::Bytes20& fresh_seed)
{
    BootPlan plan;
    plan.app_compose = share.app_compose;
    plan.compose_hash = crypto::to_hex(crypto::sha256(share.app_compose));
    // The host API first: what is wrong further down can be reported then.
    if (auto read = read_app_compose(share, plan); !read) { return std::move(read).error(); }
    if (auto read = read_sys_config(share, plan); !read) { return std::move(read).error(); }
    auto given = read_instance(share);
    if (!given) { return std::move(given).error(); }
    std::string bad;
    const json compose = json::parse(share.app_compose, nullptr, false);
    const bool no_instance_id = flag(compose, "no_instance_id", false, bad);
    if (auto settled = settle_identity(share, *given, fresh_seed, no_instance_id, plan); !settled)
    {
        return std::move(settled).error();
    }
    if (plan.key_provider == KeyProvider::kms && !share.simulator)
    {
        return invalid("the app's key provider is kms, but the host gave no .tee-simulator.json, so there is nothing "
                       "to show the KMS",
                       "start the VM with simulated_tee, or deploy with key_provider none");
    }
    if (share.encrypted_env && !share.encrypted_env->empty() && plan.key_provider != KeyProvider::kms)
    {
        return invalid("there is an encrypted environment, but no KMS to get its key from",
                       "deploy with the kms, or without secrets");
    }
    return plan;
}

std::string host_api_of(const Share& share)
{
    BootPlan plan;
    const auto read = read_sys_config(share, plan);
    return read ? plan.host_api_url : std::string{};
}

std::string console_report(const BootPlan& plan)
{
    nlohmann::ordered_json out;
    out["compose_hash"] = plan.compose_hash;
    out["app_id"] = plan.app_id;
    out["instance_id"] = plan.instance_id;
    out["os_image_hash"] = plan.os_image_hash;
    out["key_provider"] = plan.key_provider == KeyProvider::kms ? "kms" : "none";
    out["attestation"] = plan.simulated ? "simulated: no TEE protects this VM" : "none: no TEE protects this VM";
    return out.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
}

std::string instance_info_json(const BootPlan& plan)
{
    nlohmann::ordered_json out;
    out["instance_id_seed"] = plan.instance_seed;
    out["instance_id"] = plan.instance_id;
    out["app_id"] = plan.app_id;
    return out.dump(-1, ' ', false, json::error_handler_t::replace);
}

Result<std::vector<std::pair<std::string, std::string>>> read_env(std::string_view text,
                                                                  const std::vector<std::string>& allowed)
{
    constexpr std::size_t max_items = 1024, max_value = 128 * 1024, max_total = 1024 * 1024;
    const json document = json::parse(text, nullptr, false);
    const auto list = document.is_object() ? document.find("env") : document.end();
    if (!document.is_object() || list == document.end() || !list->is_array())
    {
        return invalid("the decrypted environment is not {\"env\":[...]}");
    }
    if (list->size() > max_items || text.size() > max_total)
    {
        return invalid("the decrypted environment is too large");
    }
    std::vector<std::pair<std::string, std::string>> out;
    for (const json& item : *list)
    {
        std::string bad;
        if (!item.is_object()) { return invalid("the decrypted environment has an entry that is no object"); }
        std::string key = guest::text(item, "key", "", bad);
        std::string value = guest::text(item, "value", "", bad);
        if (!bad.empty() || value.size() > max_value)
        {
            return invalid("the decrypted environment has an entry of the wrong form");
        }
        const auto word = [](char c)
        { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_'; };
        const bool name = !key.empty() && !(key.front() >= '0' && key.front() <= '9') && std::ranges::all_of(key, word);
        if (!name || std::ranges::find(allowed, key) == allowed.end()) { continue; }
        out.emplace_back(std::move(key), std::move(value));
    }
    return out;
}

} // namespace dstack::guest
