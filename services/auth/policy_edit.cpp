#include "services/auth/policy_edit.hpp"
#include "services/auth/json_reader.hpp"
#include "services/auth/policy.hpp"
#include <nlohmann/json.hpp>

namespace dstack::auth
{

namespace
{

using Json = nlohmann::json; // not ordered_json: its objects take quadratic time to read, and apps may be many
using Changed = Result<std::optional<std::string>>;

Result<std::string> argument(std::string_view what, std::string_view text, std::size_t digits)
{
    auto hex = normal_hex(text, digits);
    if (!hex) { return Error{Errc::invalid_argument, std::string{what} + ": " + hex_complaint(text, digits), {}, {}}; }
    return std::move(*hex);
}

/// parse_policy has accepted the text, so that every value below has the type that is used here.
Result<Json> load(std::string_view policy)
{
    auto valid = parse_policy(policy);
    Json document = valid ? Json::parse(policy, nullptr, false) : Json{};
    if (valid && document.is_object()) { return document; }
    return Error{Errc::failed_precondition,
                 "the policy file is not valid: " + (valid ? "no object" : valid.error().message),
                 "repair it by hand; until then every boot is denied",
                 {}};
}

bool is_same_hex(std::string_view text, std::string_view normal)
{
    const auto hex = normal_hex(text, normal.size());
    return hex && *hex == normal;
}

bool holds(const Json& list, std::string_view hash)
{
    for (const Json& item : list)
    {
        if (is_same_hex(item.get_ref<const std::string&>(), hash)) { return true; }
    }
    return false;
}

/// Adds `hash` to the list of that name; false when it is allowed already.
bool add_to(Json& object, const char* name, const std::string& hash)
{
    Json& list = object[name];
    if (list.is_null()) { list = Json::array(); }
    if (list.is_object())
    {
        if (list.value("any", false)) { return false; }
        list = Json::array();
    }
    if (holds(list, hash)) { return false; }
    list.push_back(hash);
    return true;
}

std::string app_key(const Json& apps, const std::string& app_id)
{
    for (const auto& [key, value] : apps.items())
    {
        if (is_same_hex(key, app_id)) { return key; }
    }
    return app_id;
}

std::string text_of(const Json& document) { return document.dump(2) + "\n"; }

} // namespace

Changed allow_app(std::string_view policy, std::string_view app_id, std::string_view compose_hash)
{
    auto id = argument("app_id", app_id, 40);
    if (!id) { return std::move(id).error(); }
    auto hash = argument("compose_hash", compose_hash, 64);
    if (!hash) { return std::move(hash).error(); }
    auto document = load(policy);
    if (!document) { return std::move(document).error(); }
    Json& apps = (*document)["apps"];
    if (apps.is_null()) { apps = Json::object(); }
    const std::string key = app_key(apps, *id);
    if (!apps.contains(key))
    {
        apps[key] = Json{{"composeHashes", Json::array()}, {"devices", Json::array()}, {"allowAnyDevice", true}};
    }
    if (!add_to(apps[key], "composeHashes", *hash)) { return std::optional<std::string>{}; }
    return std::optional{text_of(*document)};
}

Changed revoke_app(std::string_view policy, std::string_view app_id, std::string_view compose_hash)
{
    auto id = argument("app_id", app_id, 40);
    if (!id) { return std::move(id).error(); }
    auto hash = compose_hash.empty() ? Result<std::string>{std::string{}} : argument("compose_hash", compose_hash, 64);
    if (!hash) { return std::move(hash).error(); }
    auto document = load(policy);
    if (!document) { return std::move(document).error(); }
    const auto apps = document->find("apps");
    if (apps == document->end()) { return std::optional<std::string>{}; }
    const std::string key = app_key(*apps, *id);
    if (!apps->contains(key)) { return std::optional<std::string>{}; }
    if (hash->empty())
    {
        apps->erase(key);
        return std::optional{text_of(*document)};
    }
    const auto list = (*apps)[key].find("composeHashes");
    if (list == (*apps)[key].end()) { return std::optional<std::string>{}; }
    if (list->is_object() && list->value("any", false))
    {
        return Error{Errc::failed_precondition,
                     "app " + *id + " allows any compose hash: one cannot be taken back",
                     "revoke the whole app, or replace {\"any\": true} by a list in the policy file",
                     {}};
    }
    bool changed = false;
    for (auto item = list->begin(); item != list->end();)
    {
        const bool hit = list->is_array() && is_same_hex(item->get_ref<const std::string&>(), *hash);
        changed = changed || hit;
        if (hit) { item = list->erase(item); }
        else { ++item; }
    }
    // An entry without hashes allows nothing; it is kept only where somebody listed devices in it.
    const Json& app = (*apps)[key];
    const auto devices = app.find("devices");
    if (changed && list->empty() && (devices == app.end() || devices->empty())) { apps->erase(key); }
    return changed ? std::optional{text_of(*document)} : std::optional<std::string>{};
}

Changed allow_image(std::string_view policy, std::string_view os_image_hash)
{
    auto hash = argument("os_image_hash", os_image_hash, 64);
    if (!hash) { return std::move(hash).error(); }
    auto document = load(policy);
    if (!document) { return std::move(document).error(); }
    if (!add_to(*document, "osImages", *hash)) { return std::optional<std::string>{}; }
    return std::optional{text_of(*document)};
}

std::string blank_policy()
{
    return text_of(
        Json{{"osImages", Json::array()},
             {"gatewayAppId", ""},
             {"kms", {{"mrAggregated", Json::array()}, {"devices", Json::array()}, {"allowAnyDevice", false}}},
             {"apps", Json::object()}});
}

} // namespace dstack::auth
