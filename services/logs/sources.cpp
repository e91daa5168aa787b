#include "services/logs/sources.hpp"
#include "services/logs/lines.hpp"
#include <algorithm>
#include <nlohmann/json.hpp>

namespace dstack::logs
{

namespace
{
using nlohmann::json;

std::string text_of(const json& object, const char* key)
{
    const auto found = object.find(key);
    return found != object.end() && found->is_string() ? found->get_ref<const std::string&>() : std::string{};
}

bool better(const SourceInfo& a, const SourceInfo& b)
{
    return a.removed != b.removed ? !a.removed : a.created_ms > b.created_ms;
}
} // namespace

std::string encode(const SourceInfo& info)
{
    const json out = {{"kind", info.kind == SourceInfo::Kind::vm ? "vm" : "service"},
                      {"id", info.id},
                      {"name", info.name},
                      {"app_id", info.app_id},
                      {"path", info.path},
                      {"removed", info.removed},
                      {"created_ms", info.created_ms}};
    return out.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
}

Result<SourceInfo> decode_source(std::string_view text)
{
    const json object = json::parse(text, nullptr, false);
    const Error bad{Errc::data_loss, "source.json: not readable", {}, {}};
    if (!object.is_object()) { return bad; }
    SourceInfo out;
    const std::string kind = text_of(object, "kind");
    if (kind != "vm" && kind != "service") { return bad; }
    out.kind = kind == "vm" ? SourceInfo::Kind::vm : SourceInfo::Kind::service;
    out.id = text_of(object, "id");
    out.name = text_of(object, "name");
    out.app_id = text_of(object, "app_id");
    out.path = text_of(object, "path");
    const auto removed = object.find("removed");
    out.removed = removed != object.end() && removed->is_boolean() && removed->get<bool>();
    const auto created = object.find("created_ms");
    if (created != object.end() && created->is_number_unsigned()) { out.created_ms = created->get<std::uint64_t>(); }
    if (!is_source_name(out.id)) { return bad; }
    return out;
}

std::string directory_name(const SourceInfo& info)
{
    return (info.kind == SourceInfo::Kind::vm ? "vm-" : "service-") + info.id;
}

Result<std::size_t> resolve(const std::vector<SourceInfo>& sources, std::string_view wanted)
{
    using Kind = SourceInfo::Kind;
    const std::string asked{wanted};
    const bool only_vm = wanted.starts_with("vm:");
    const bool only_service = wanted.starts_with("service:");
    if (only_vm) { wanted.remove_prefix(3); }
    if (only_service) { wanted.remove_prefix(8); }
    /// Lower is the better way to be meant.
    const auto rank = [&](const SourceInfo& s)
    {
        if (s.kind == Kind::vm && !only_service)
        {
            if (s.id == wanted) { return 0; }
            if (s.name == wanted) { return 1; }
            if (s.app_id == wanted && !wanted.empty()) { return 2; }
            if (wanted.size() >= 8 && s.id.starts_with(wanted)) { return 4; }
        }
        return s.kind == Kind::service && !only_vm && s.id == wanted ? 3 : 9;
    };
    std::size_t best = sources.size();
    bool twice = false;
    for (std::size_t i = 0; i < sources.size(); ++i)
    {
        const int mine = rank(sources[i]);
        if (mine == 9) { continue; }
        const int theirs = best == sources.size() ? 9 : rank(sources[best]);
        twice = mine == 4 && theirs == 4;
        if (mine < theirs || (mine == theirs && better(sources[i], sources[best]))) { best = i; }
    }
    if (best != sources.size() && !(twice && rank(sources[best]) == 4)) { return best; }
    if (twice) { return Error{Errc::invalid_argument, "logs of " + asked + ": more than one VM id begins so", "give more of it", {}}; }
    std::vector<std::string> names;
    for (const SourceInfo& s : sources)
    {
        if (!s.removed && names.size() < 20) { names.push_back(s.name.empty() ? s.id : s.name); }
    }
    std::sort(names.begin(), names.end());
    std::string hint = names.empty() ? "nothing is collected yet" : "there are logs of:";
    for (const auto& name : names) { hint += " " + name; }
    return Error{Errc::not_found, "logs of " + valid_utf8(asked.substr(0, 64)) + ": no such VM, app or service", hint, {}};
}

} // namespace dstack::logs
