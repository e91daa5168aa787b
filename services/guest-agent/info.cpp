#include "services/guest-agent/info.hpp"
#include <nlohmann/json.hpp>

namespace dstack::guest
{

namespace
{

using nlohmann::ordered_json;

std::string dump(const ordered_json& value)
{
    return value.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

http::Response refuse(int status, std::string_view why)
{
    const ordered_json body{{"error", why}};
    return http::json_response(status, body.dump(2, ' ', false, ordered_json::error_handler_t::replace));
}

std::string info_json(const BootPlan& plan)
{
    // sha256(""): upstream's own value where nothing was verified (F.3)
    constexpr std::string_view no_device = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    ordered_json tcb{{"mrtd", ""}, {"rtmr0", ""}, {"rtmr1", ""}, {"rtmr2", ""}, {"rtmr3", ""}, {"mr_aggregated", ""}};
    tcb["os_image_hash"] = plan.os_image_hash;
    tcb["compose_hash"] = plan.compose_hash;
    tcb["device_id"] = no_device;
    tcb["event_log"] = ordered_json::array();
    tcb["app_compose"] = plan.app_compose;
    ordered_json out;
    out["app_id"] = plan.app_id;
    out["instance_id"] = plan.instance_id;
    out["app_cert"] = "";
    out["tcb_info"] = plan.public_tcbinfo ? dump(tcb) : std::string{};
    out["app_name"] = plan.app_name;
    out["device_id"] = no_device;
    out["mr_aggregated"] = "";
    out["os_image_hash"] = plan.os_image_hash;
    out["key_provider_info"] = dump({{"name", plan.key_provider == KeyProvider::kms ? "kms" : "none"}, {"id", ""}});
    out["compose_hash"] = plan.compose_hash;
    out["vm_config"] = plan.public_tcbinfo ? plan.vm_config : std::string{};
    out["cloud_vendor"] = "dstack";
    out["cloud_product"] = "development guest, attestation simulated";
    return dump(out);
}

} // namespace

http::Response answer_info(const http::Request& request, const BootPlan* plan)
{
    constexpr std::string_view mount = "/prpc/", worker = "Worker.";
    std::string_view path = request.path();
    if (!path.starts_with(mount))
    {
        return http::text_response(404, "not found: /prpc/Info and /prpc/Version are here\n");
    }
    if (request.method != "GET" && request.method != "POST" && request.method != "HEAD")
    {
        return refuse(405, "use GET or POST");
    }
    std::string_view method = path.substr(mount.size());
    while (method.starts_with(worker)) { method.remove_prefix(worker.size()); }
    http::Response out;
    if (method == "Version") { out = http::json_response(200, dump({{"version", DSTACK_VERSION}, {"rev", ""}})); }
    else if (method == "Info" && plan != nullptr) { out = http::json_response(200, info_json(*plan)); }
    else if (method == "Info") { out = refuse(400, "the guest is still booting"); }
    else { out = refuse(400, "Service not found: " + std::string{method.substr(0, 100)}); }
    out.headers.set("X-App-Version", "v" DSTACK_VERSION);
    return out;
}

} // namespace dstack::guest
