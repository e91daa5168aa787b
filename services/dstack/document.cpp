#include "services/dstack/document.hpp"
#include <nlohmann/json.hpp>

namespace dstack::cli
{

namespace
{
using json = nlohmann::ordered_json;

std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

json raw(std::string_view text)
{
    json value = json::parse(text, nullptr, false);
    return value.is_discarded() ? json() : value;
}

json ports_of(const std::vector<schema::PortMapping>& ports)
{
    json out = json::array();
    for (const auto& port : ports)
    {
        out.push_back({{"protocol", port.protocol}, {"vmPort", port.vm_port}, {"hostPort", port.host_port}, {"hostAddress", port.host_address}});
    }
    return out;
}

json object_of(const schema::App& app)
{
    return {{"name", app.name},
            {"appId", app.app_id},
            {"vmId", app.vm_id},
            {"instanceId", app.instance_id},
            {"composeHash", app.compose_hash},
            {"image", app.image},
            {"state", app.state},
            {"evidence", app.evidence},
            {"observedAt", app.observed_at},
            {"bootProgress", app.boot_progress},
            {"bootError", app.boot_error},
            {"cid", app.cid},
            {"ports", ports_of(app.ports)},
            {"url", url_of(app.ports)},
            {"createdAt", app.created_at},
            {"operation", app.operation}};
}
} // namespace

std::string url_of(const std::vector<schema::PortMapping>& ports)
{
    for (const auto& port : ports)
    {
        if (port.protocol != "tcp" || port.host_port == 0) { continue; }
        std::string host = port.host_address == "0.0.0.0" ? "127.0.0.1" : port.host_address;
        if (host.find(':') != std::string::npos) { host = host == "::" ? "[::1]" : "[" + host + "]"; }
        return "http://" + host + ":" + std::to_string(port.host_port) + "/";
    }
    return {};
}

std::string document(std::string_view kind, std::string_view data, const std::vector<std::string>& warnings)
{
    json out;
    out["schema"] = "dstack." + std::string{kind} + "/v1";
    out["data"] = raw(data);
    out["warnings"] = warnings;
    return dump(out) + "\n";
}

std::string error_document(const Error& error)
{
    json out;
    out["schema"] = "dstack.error/v1";
    out["error"] = {{"code", std::string{to_string(error.code)}}, {"message", error.message}, {"hint", error.hint}, {"details", raw(error.details)}};
    return dump(out) + "\n";
}

std::string app_json(const schema::App& app) { return dump(object_of(app)); }

std::string apps_json(const std::vector<schema::App>& apps)
{
    json list = json::array();
    for (const auto& app : apps) { list.push_back(object_of(app)); }
    return dump(json{{"apps", std::move(list)}});
}

namespace
{
json object_of(const schema::Lease& lease)
{
    return {{"id", lease.id},       {"kind", lease.kind},   {"protocol", lease.protocol}, {"address", lease.address}, {"value", lease.value},
            {"owner", lease.owner}, {"purpose", lease.purpose}, {"state", lease.state},   {"since", lease.since},     {"expires", lease.expires},
            {"vm", lease.vm},       {"install", lease.install}, {"caller", lease.caller}};
}

json object_of(const schema::HostUse& use)
{
    return {{"kind", use.kind}, {"protocol", use.protocol}, {"address", use.address}, {"value", use.value}, {"last", use.last == 0 ? use.value : use.last},
            {"pid", use.pid},   {"process", use.process},   {"unit", use.unit},       {"command", use.command}, {"why", use.why},
            {"lease", use.lease}, {"owner", use.owner}};
}

template <class T>
json list_of(const std::vector<T>& things)
{
    json out = json::array();
    for (const T& one : things) { out.push_back(object_of(one)); }
    return out;
}
} // namespace

std::string leases_json(const std::vector<schema::Lease>& leases, const std::vector<schema::HostUse>& uses, std::string_view database)
{
    return dump(json{{"leases", list_of(leases)}, {"uses", list_of(uses)}, {"database", database}});
}

std::string explanation_json(const schema::LeaseExplain::Reply& reply)
{
    return dump(json{{"what", reply.what}, {"free", reply.free}, {"reasons", reply.reasons}, {"leases", list_of(reply.leases)}, {"uses", list_of(reply.uses)}});
}

std::string released_json(std::string_view id, std::uint32_t released) { return dump(json{{"id", id}, {"released", released}}); }

std::string deploy_json(const schema::DeployCreate::Reply& reply, const schema::App& app)
{
    json out = object_of(app);
    if (app.app_id.empty()) { out["appId"] = reply.app_id; }
    if (app.compose_hash.empty()) { out["composeHash"] = reply.compose_hash; }
    out["operation"] = reply.operation;
    out["already"] = reply.already;
    return dump(out);
}

std::string plan_json(const schema::DeployCreate::Reply& reply)
{
    return dump(json{{"composeHash", reply.compose_hash}, {"appId", reply.app_id}, {"appCompose", reply.app_compose}, {"dryRun", true}});
}

std::string begun_json(std::string_view app, const schema::OperationBegun& begun, std::string_view state, std::string_view evidence)
{
    return dump(json{{"name", app}, {"vmId", begun.vm_id}, {"operation", begun.operation}, {"already", begun.already}, {"state", state},
                     {"evidence", evidence}});
}

std::string log_line_json(std::string_view source, std::string_view time, std::string_view channel, std::uint64_t sequence,
                          std::string_view text)
{
    return dump(json{{"schema", "dstack.log_line/v1"}, {"source", source}, {"time", time}, {"channel", channel}, {"sequence", sequence}, {"text", text}}) + "\n";
}

std::string gap_json(std::uint64_t from, std::uint64_t to, std::string_view reason)
{
    return dump(json{{"schema", "dstack.gap/v1"}, {"from", from}, {"to", to}, {"reason", reason}}) + "\n";
}

std::string failure_details(std::string_view operation, std::string_view step, bool denied, const std::vector<std::string>& last_lines)
{
    return dump(json{{"operation", operation}, {"step", step}, {"denied", denied}, {"lastLines", last_lines}});
}

std::string version_json(std::string_view version) { return dump(json{{"version", version}}); }

} // namespace dstack::cli
