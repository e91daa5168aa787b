#include "services/dstackup/status.hpp"
#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

namespace dstack::up
{

namespace
{
using Json = nlohmann::json;
constexpr std::array<std::string_view, 6> phase_names{"starting", "ready", "stopping", "stopped", "backoff", "failed"};

Json identity_json(const process::Identity& who)
{
    return {{"pid", who.pid}, {"start_ticks", who.start_ticks}, {"boot_id", who.boot_id}};
}

template <class T>
T field(const Json& object, const char* key, T otherwise)
{
    const auto found = object.find(key);
    if (found == object.end()) { return otherwise; }
    if constexpr (std::is_same_v<T, std::string>) { return found->is_string() ? found->get<std::string>() : otherwise; }
    else if constexpr (std::is_same_v<T, bool>) { return found->is_boolean() ? found->get<bool>() : otherwise; }
    else { return found->is_number_integer() ? found->get<T>() : otherwise; }
}

process::Identity identity_of(const Json& object, const char* key)
{
    const auto found = object.find(key);
    if (found == object.end() || !found->is_object()) { return {}; }
    return {field<pid_t>(*found, "pid", 0), field<std::uint64_t>(*found, "start_ticks", 0),
            field<std::string>(*found, "boot_id", {})};
}
} // namespace

std::string_view to_string(Phase phase) { return phase_names[static_cast<std::size_t>(phase)]; }

const ServiceStatus* MeshStatus::find(std::string_view name) const
{
    const auto found = std::find_if(services.begin(), services.end(), [&](const auto& s) { return s.name == name; });
    return found == services.end() ? nullptr : &*found;
}

bool MeshStatus::all_ready() const
{
    return !services.empty() &&
           std::all_of(services.begin(), services.end(), [](const auto& s) { return s.phase == Phase::ready; });
}

bool MeshStatus::healthy() const
{
    return all_ready() && std::none_of(services.begin(), services.end(), [](const auto& s) { return s.text.starts_with("unhealthy: "); });
}

const ServiceStatus* MeshStatus::failed() const
{
    const auto found =
        std::find_if(services.begin(), services.end(), [](const auto& s) { return s.phase == Phase::failed; });
    return found == services.end() ? nullptr : &*found;
}

std::string encode(const MeshStatus& status)
{
    Json services = Json::array();
    for (const auto& s : status.services)
    {
        services.push_back({{"name", s.name},
                            {"phase", to_string(s.phase)},
                            {"process", identity_json(s.process)},
                            {"adopted", s.adopted},
                            {"since_ms", s.since_ms},
                            {"restarts", s.restarts},
                            {"last_exit", s.last_exit},
                            {"reason", s.reason},
                            {"text", s.text}});
    }
    const Json document{{"supervisor", identity_json(status.supervisor)}, {"services", std::move(services)}};
    return document.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

Result<MeshStatus> decode_status(std::string_view text)
{
    const auto document = Json::parse(text, nullptr, false);
    const auto services = document.is_object() ? document.find("services") : document.end();
    if (!document.is_object() || services == document.end() || !services->is_array())
    {
        return Error{Errc::data_loss,
                     "the supervisor's status file is no status document",
                     "stop and start the mesh: dstackup dev down; dstackup dev up",
                     {}};
    }
    MeshStatus out;
    out.supervisor = identity_of(document, "supervisor");
    for (const auto& item : *services)
    {
        if (!item.is_object()) { continue; }
        ServiceStatus s;
        s.name = field<std::string>(item, "name", {});
        const auto phase = field<std::string>(item, "phase", {});
        const auto known = std::find(phase_names.begin(), phase_names.end(), phase);
        if (s.name.empty() || known == phase_names.end()) { continue; }
        s.phase = static_cast<Phase>(known - phase_names.begin());
        s.process = identity_of(item, "process");
        s.adopted = field<bool>(item, "adopted", false);
        s.since_ms = field<std::uint64_t>(item, "since_ms", 0);
        s.restarts = field<std::uint64_t>(item, "restarts", 0);
        s.last_exit = field<std::string>(item, "last_exit", {});
        s.reason = field<std::string>(item, "reason", {});
        s.text = field<std::string>(item, "text", {});
        out.services.push_back(std::move(s));
    }
    return out;
}

std::string short_duration(std::uint64_t milliseconds)
{
    const std::uint64_t seconds = milliseconds / 1000;
    if (seconds < 120) { return std::to_string(seconds) + " s"; }
    if (seconds < 2 * 3600) { return std::to_string(seconds / 60) + " min"; }
    if (seconds < 48 * 3600) { return std::to_string(seconds / 3600) + " h"; }
    return std::to_string(seconds / 86400) + " d";
}

} // namespace dstack::up
