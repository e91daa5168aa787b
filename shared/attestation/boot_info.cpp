#include "shared/attestation/boot_info.hpp"
#include "shared/crypto/hex.hpp"
#include <nlohmann/json.hpp>

namespace dstack::attestation
{

namespace
{

Error invalid(std::string message) { return {Errc::invalid_argument, std::move(message), {}, {}}; }

struct Rule
{
    std::string_view key;
    std::string BootInfo::*field;
    std::size_t bytes = 0;       ///< of hex; 0: any text
    std::size_t other_bytes = 0; ///< a second size that is also right
    bool may_be_empty = false;
    bool may_be_missing = false;
};
constexpr Rule rules[] = {
    {"teeVariant", &BootInfo::tee_variant, 0, 0, true, true},
    {"mrAggregated", &BootInfo::mr_aggregated, 32},
    {"osImageHash", &BootInfo::os_image_hash, 32, 0, true},
    {"mrSystem", &BootInfo::mr_system, 32, 0, false, true},
    {"appId", &BootInfo::app_id, 20},
    {"composeHash", &BootInfo::compose_hash, 32},
    {"instanceId", &BootInfo::instance_id, 20, 0, true},
    {"deviceId", &BootInfo::device_id, 32, 64},
    {"keyProviderInfo", &BootInfo::key_provider_info, 0, 0, true},
    {"tcbStatus", &BootInfo::tcb_status, 0, 0, true, true},
};

Result<Done> read_text(const nlohmann::json& object, const Rule& rule, BootInfo& out)
{
    const auto name = std::string{rule.key};
    const auto found = object.find(name);
    if (found == object.end())
    {
        if (rule.may_be_missing) { return Done{}; }
        return invalid("missing key " + name);
    }
    const auto* const value = found->get_ptr<const std::string*>();
    if (value == nullptr) { return invalid(name + " is not a string"); }
    if (rule.bytes != 0 && !(value->empty() && rule.may_be_empty))
    {
        auto bytes = crypto::from_hex(*value, rule.bytes);
        if (!bytes && rule.other_bytes != 0) { bytes = crypto::from_hex(*value, rule.other_bytes); }
        if (!bytes) { return std::move(bytes).error().within(name); }
        out.*rule.field = crypto::to_hex(*bytes);
        return Done{};
    }
    out.*rule.field = *value;
    return Done{};
}

} // namespace

std::string to_json(const BootInfo& info)
{
    nlohmann::ordered_json out;
    for (const auto& rule : rules) { out[std::string{rule.key}] = info.*rule.field; }
    out["advisoryIds"] = info.advisory_ids;
    return out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

Result<BootInfo> boot_info_from_json(std::string_view json)
{
    const auto object = nlohmann::json::parse(json, nullptr, false);
    if (!object.is_object()) { return invalid("boot info is not a JSON object"); }
    BootInfo out;
    for (const auto& rule : rules)
    {
        if (auto done = read_text(object, rule, out); !done) { return std::move(done).error(); }
    }
    const auto advisories = object.find("advisoryIds");
    if (advisories == object.end()) { return out; }
    if (!advisories->is_array()) { return invalid("advisoryIds is not an array"); }
    for (const auto& entry : *advisories)
    {
        const auto* const id = entry.get_ptr<const std::string*>();
        if (id == nullptr) { return invalid("advisoryIds holds something that is not a string"); }
        out.advisory_ids.push_back(*id);
    }
    return out;
}

} // namespace dstack::attestation
