#include "services/auth/policy_edit.hpp"
#include "services/auth/json_reader.hpp"
#include "services/auth/policy.hpp"
#include "shared/base/time.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include <limits>
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

/// The value of an entry: a text, or an object with "value".
std::string_view value_of(const Json& item)
{
    return item.is_object() ? item.at("value").get_ref<const std::string&>() : item.get_ref<const std::string&>();
}

/// When an entry ends, unix time; the largest number for one without an end.
std::uint64_t end_of(const Json& item)
{
    const auto expires = item.is_object() ? item.find("expires") : item.end();
    const auto time = item.is_object() && expires != item.end() ? parse_time(expires->get_ref<const std::string&>()) : std::nullopt;
    return time.value_or(std::numeric_limits<std::uint64_t>::max());
}

/// Whether the list, which may be {"any": ...}, allows everything for that long.
bool is_any(const Json& list, std::uint64_t until)
{
    return list.is_object() && list.value("any", false) && end_of(list) >= until;
}

/// Adds `hash` to the list of that name; false when it is allowed for so long already.
Result<bool> add_to(Json& object, const char* name, const std::string& hash, const Grant& grant)
{
    const std::uint64_t until = grant.expires_ms != 0 ? grant.expires_ms : std::numeric_limits<std::uint64_t>::max();
    Json& list = object[name];
    if (is_any(list, until)) { return false; }
    if (list.is_object() && list.value("any", false))
    {
        return Error{Errc::failed_precondition,
                     std::string{name} + " allows anything for a while: an entry of its own would end that",
                     "replace {\"any\": true} by a list in the policy file",
                     {}};
    }
    if (!list.is_array()) { list = Json::array(); }
    for (auto item = list.begin(); item != list.end();)
    {
        const bool same = is_same_hex(value_of(*item), hash);
        if (same && end_of(*item) >= until) { return false; }
        if (same) { item = list.erase(item); }
        else { ++item; }
    }
    if (grant.expires_ms == 0) { list.push_back(hash); }
    else
    {
        Json entry{{"value", hash}, {"expires", rfc3339(grant.expires_ms)}};
        if (!grant.reason.empty()) { entry["reason"] = grant.reason; }
        list.push_back(std::move(entry));
    }
    return true;
}

/// Removes every entry for `hash`; whether there was one.
bool remove_from(Json& list, std::string_view hash)
{
    bool changed = false;
    for (auto item = list.begin(); list.is_array() && item != list.end();)
    {
        const bool hit = is_same_hex(value_of(*item), hash);
        changed = changed || hit;
        if (hit) { item = list.erase(item); }
        else { ++item; }
    }
    return changed;
}

Result<Done> check(const Grant& grant)
{
    if (is_plain(grant.reason, 1000)) { return Done{}; }
    return Error{Errc::invalid_argument, "reason: must be at most 1000 printable ASCII characters", {}, {}};
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

Changed allow_app(std::string_view policy, std::string_view app_id, std::string_view compose_hash, const Grant& grant)
{
    auto fine = check(grant);
    if (!fine) { return std::move(fine).error(); }
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
    auto added = add_to(apps[key], "composeHashes", *hash, grant);
    if (!added) { return std::move(added).error(); }
    if (!*added) { return std::optional<std::string>{}; }
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
    const bool changed = remove_from(*list, *hash);
    // An entry without hashes allows nothing; it is kept only where somebody listed devices in it.
    const Json& app = (*apps)[key];
    const auto devices = app.find("devices");
    if (changed && list->empty() && (devices == app.end() || devices->empty())) { apps->erase(key); }
    return changed ? std::optional{text_of(*document)} : std::optional<std::string>{};
}

Changed allow_image(std::string_view policy, std::string_view os_image_hash, const Grant& grant)
{
    auto fine = check(grant);
    if (!fine) { return std::move(fine).error(); }
    auto hash = argument("os_image_hash", os_image_hash, 64);
    if (!hash) { return std::move(hash).error(); }
    auto document = load(policy);
    if (!document) { return std::move(document).error(); }
    auto added = add_to(*document, "osImages", *hash, grant);
    if (!added) { return std::move(added).error(); }
    if (!*added) { return std::optional<std::string>{}; }
    return std::optional{text_of(*document)};
}

Changed revoke_image(std::string_view policy, std::string_view os_image_hash)
{
    auto hash = argument("os_image_hash", os_image_hash, 64);
    if (!hash) { return std::move(hash).error(); }
    auto document = load(policy);
    if (!document) { return std::move(document).error(); }
    const auto list = document->find("osImages");
    if (list == document->end()) { return std::optional<std::string>{}; }
    if (list->is_object() && list->value("any", false))
    {
        return Error{Errc::failed_precondition,
                     "the policy allows any OS image: one cannot be taken back",
                     "replace {\"any\": true} by a list in the policy file",
                     {}};
    }
    return remove_from(*list, *hash) ? std::optional{text_of(*document)} : std::optional<std::string>{};
}

Changed set_policy(std::string_view policy, std::string_view text, std::string_view expected_hash)
{
    auto expected = expected_hash.empty() ? Result<std::string>{std::string{}} : argument("expected_hash", expected_hash, 64);
    if (!expected) { return std::move(expected).error(); }
    auto valid = parse_policy(text);
    if (!valid) { return std::move(valid).error().within("policy"); }
    const std::string now = crypto::to_hex(crypto::sha256(policy));
    if (policy == text) { return std::optional<std::string>{}; }
    if (!expected->empty() && *expected != now)
    {
        return Error{Errc::aborted,
                     "the policy file is another one: expected " + *expected + ", is " + now,
                     "somebody changed it meanwhile: read it again, make the change there",
                     {}};
    }
    return std::optional{std::string{text}};
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
