#include "services/auth/policy.hpp"
#include "services/auth/json_reader.hpp"
#include <nlohmann/json.hpp>

namespace dstack::auth
{

namespace
{

using simdjson::dom::element;
using simdjson::dom::key_value_pair;

constexpr std::size_t max_word = 256;

Error refused(std::string_view where, std::string_view why)
{
    return Error{Errc::invalid_argument, std::string{where} + ": " + std::string{why}, {}, {}};
}

Result<Hash> hash_entry(std::string_view text, const std::string& where)
{
    const auto hex = normal_hex(text, 64);
    Hash out{};
    if (!hex || !unhex(*hex, out)) { return refused(where, hex_complaint(text, 64)); }
    return out;
}

Result<std::string> device_entry(std::string_view text, const std::string& where)
{
    auto hex = normal_hex(text, 64);
    if (!hex) { hex = normal_hex(text, 128); }
    if (!hex) { return refused(where, "must be 64 or 128 hex digits"); }
    return std::move(*hex);
}

Result<std::string> word_entry(std::string_view text, const std::string& where)
{
    if (text.empty() || !is_plain(text, max_word)) { return refused(where, "must be printable ASCII and not empty"); }
    return std::string{text};
}

/// An array of strings, or {"any": true}.
template <class T>
Result<AllowList<T>> read_list(element value, const std::string& where,
                               Result<T> (*entry)(std::string_view, const std::string&))
{
    AllowList<T> out;
    if (value.is_object())
    {
        auto members = members_of(value, where);
        if (!members) { return std::move(members).error(); }
        for (const key_value_pair& member : *members)
        {
            if (member.key != "any") { return refused(where + "." + shown(member.key), "unknown key; known: any"); }
            auto any = bool_of(member.value, where + ".any");
            if (!any) { return std::move(any).error(); }
            out.any = *any;
        }
        return out;
    }
    simdjson::dom::array array;
    if (value.get(array) != simdjson::SUCCESS)
    {
        return refused(where, "must be an array or {\"any\": true}, not " + std::string{type_name(value)});
    }
    out.values.reserve(array.size());
    std::size_t index = 0;
    for (const element item : array)
    {
        const std::string at = where + "[" + std::to_string(index++) + "]";
        std::string_view text;
        if (item.get(text) != simdjson::SUCCESS)
        {
            return refused(at, "must be a string, not " + std::string{type_name(item)});
        }
        auto taken = entry(text, at);
        if (!taken) { return std::move(taken).error(); }
        out.values.push_back(std::move(*taken));
    }
    std::sort(out.values.begin(), out.values.end());
    return out;
}

template <class T>
Result<Done> keep(Result<T> result, T& member)
{
    if (!result) { return std::move(result).error(); }
    member = std::move(*result);
    return Done{};
}

Result<Done> keep_any_device(element value, const std::string& where, AllowList<std::string>& devices)
{
    auto any = bool_of(value, where);
    if (!any) { return std::move(any).error(); }
    devices.any = devices.any || *any;
    return Done{};
}

Result<Done> keep_devices(element value, const std::string& where, AllowList<std::string>& devices)
{
    const bool any = devices.any; // allowAnyDevice may have come before
    auto kept = keep(read_list<std::string>(value, where, device_entry), devices);
    devices.any = devices.any || any;
    return kept;
}

Result<AppPolicy> read_app(element value, const std::string& where)
{
    AppPolicy out;
    auto members = members_of(value, where);
    if (!members) { return std::move(members).error(); }
    for (const key_value_pair& member : *members)
    {
        const std::string at = where + "." + shown(member.key);
        Result<Done> taken = refused(at, "unknown key; known: composeHashes, devices, allowAnyDevice");
        if (member.key == "composeHashes")
        {
            taken = keep(read_list<Hash>(member.value, at, hash_entry), out.compose_hashes);
        }
        else if (member.key == "devices") { taken = keep_devices(member.value, at, out.devices); }
        else if (member.key == "allowAnyDevice") { taken = keep_any_device(member.value, at, out.devices); }
        if (!taken) { return std::move(taken).error(); }
    }
    return out;
}

Result<Done> read_kms(element value, Policy& out)
{
    auto members = members_of(value, "kms");
    if (!members) { return std::move(members).error(); }
    for (const key_value_pair& member : *members)
    {
        const std::string at = "kms." + shown(member.key);
        Result<Done> taken = refused(at, "unknown key; known: mrAggregated, devices, allowAnyDevice");
        if (member.key == "mrAggregated")
        {
            taken = keep(read_list<Hash>(member.value, at, hash_entry), out.kms_aggregated_mrs);
        }
        else if (member.key == "devices") { taken = keep_devices(member.value, at, out.kms_devices); }
        else if (member.key == "allowAnyDevice") { taken = keep_any_device(member.value, at, out.kms_devices); }
        if (!taken) { return taken; }
    }
    return Done{};
}

Result<Done> read_apps(element value, Policy& out)
{
    auto members = members_of(value, "apps");
    if (!members) { return std::move(members).error(); }
    out.apps.reserve(members->size());
    for (const key_value_pair& member : *members)
    {
        const std::string at = "apps." + shown(member.key);
        const auto hex = normal_hex(member.key, 40);
        AppId id{};
        if (!hex || !unhex(*hex, id)) { return refused(at, "an app id " + hex_complaint(member.key, 40)); }
        auto app = read_app(member.value, at);
        if (!app) { return std::move(app).error(); }
        // the same id in another spelling: two readers could take different ones
        if (!out.apps.emplace(id, std::move(*app)).second) { return refused(at, "this app comes twice"); }
    }
    return Done{};
}

Result<Done> read_plain(element value, const std::string& where, std::string& member)
{
    auto text = string_of(value, where);
    if (!text) { return std::move(text).error(); }
    if (!is_plain(*text, max_word)) { return refused(where, "must be at most 256 printable ASCII characters"); }
    member = std::move(*text);
    return Done{};
}

Result<Done> read_chain_id(element value, Policy& out)
{
    std::uint64_t id = 0;
    if (value.get(id) != simdjson::SUCCESS)
    {
        return refused("chainId", "must be a whole number that is not negative");
    }
    out.chain_id = id;
    return Done{};
}

Result<Done> read_top(std::string_view key, element value, Policy& out)
{
    const std::string at{key};
    if (key == "osImages") { return keep(read_list<Hash>(value, at, hash_entry), out.os_images); }
    if (key == "allowedTcbStatuses") { return keep(read_list<std::string>(value, at, word_entry), out.tcb_statuses); }
    if (key == "allowedAdvisoryIds") { return keep(read_list<std::string>(value, at, word_entry), out.advisory_ids); }
    if (key == "gatewayAppId") { return read_plain(value, at, out.gateway_app_id); }
    if (key == "kmsContractAddr") { return read_plain(value, at, out.kms_contract_address); }
    if (key == "chainId") { return read_chain_id(value, out); }
    if (key == "appImplementation") { return read_plain(value, at, out.app_implementation); }
    if (key == "kms") { return read_kms(value, out); }
    if (key == "apps") { return read_apps(value, out); }
    return refused(shown(key), "unknown key; known: osImages, allowedTcbStatuses, allowedAdvisoryIds, gatewayAppId, "
                               "kmsContractAddr, chainId, appImplementation, kms, apps");
}

/// simdjson does not say where a text breaks; the slow path does.
std::string syntax_complaint(std::string_view text)
{
    try
    {
        const auto ignored = nlohmann::json::parse(text, [](int depth, nlohmann::json::parse_event_t, nlohmann::json&)
                                                   { return depth < 64; });
    }
    catch (const nlohmann::json::parse_error& error)
    {
        const std::string_view what = error.what();
        const auto start = what.find("parse error at ");
        const auto end = what.find(": ", start == std::string_view::npos ? 0 : start);
        if (start != std::string_view::npos && end != std::string_view::npos)
        {
            return "no valid JSON at " + std::string{what.substr(start + 15, end - start - 15)};
        }
    }
    catch (const std::exception&)
    {
    }
    return "no valid JSON";
}

} // namespace

Result<Policy> parse_policy(std::string_view text)
{
    simdjson::dom::parser parser;
    auto root = parse_json(parser, text);
    if (!root)
    {
        if (root.error().message == "no valid JSON")
        {
            return Error{Errc::invalid_argument, syntax_complaint(text), {}, {}};
        }
        return std::move(root).error();
    }
    auto members = members_of(*root, "policy");
    if (!members) { return std::move(members).error(); }
    Policy out;
    for (const key_value_pair& member : *members)
    {
        auto taken = read_top(member.key, member.value, out);
        if (!taken) { return std::move(taken).error(); }
    }
    return out;
}

} // namespace dstack::auth
