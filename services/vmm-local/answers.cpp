#include "services/vmm-local/answers.hpp"
#include "services/vmm-local/qemu_args.hpp"
#include "shared/crypto/hex.hpp"
#include <algorithm>
#include <nlohmann/json.hpp>

namespace dstack::vmm
{

namespace
{
using nlohmann::ordered_json;

std::string dump(const ordered_json& value) { return value.dump(-1, ' ', false, ordered_json::error_handler_t::replace); }

ordered_json configuration(const VmView& view)
{
    const Manifest& m = view.manifest;
    ordered_json out;
    out["name"] = m.name;
    out["image"] = m.image;
    out["compose_file"] = view.compose_file;
    out["vcpu"] = m.vcpu;
    out["memory"] = m.memory;
    out["disk_size"] = m.disk_size;
    out["ports"] = ordered_json::array();
    for (const auto& port : m.port_map)
    {
        ordered_json item;
        item["protocol"] = port.protocol;
        item["host_port"] = port.from;
        item["vm_port"] = port.to;
        item["host_address"] = port.address;
        out["ports"].push_back(std::move(item));
    }
    out["encrypted_env"] = crypto::to_hex(crypto::view(view.encrypted_env));
    out["app_id"] = m.app_id;
    out["user_config"] = view.user_config;
    out["hugepages"] = m.hugepages;
    out["pin_numa"] = m.pin_numa;
    out["gpus"] = ordered_json{{"gpus", ordered_json::array()}, {"attach_mode", "listed"}};
    out["kms_urls"] = m.kms_urls;
    out["gateway_urls"] = m.gateway_urls;
    out["stopped"] = !view.state.started;
    out["no_tee"] = m.no_tee;
    const ordered_json network{{"mode", "user"}, {"bridge_name", ""}};
    out["networking"] = network;
    out["networks"] = ordered_json::array({network});
    out["simulated_tee"] = m.simulated_tee ? ordered_json(*m.simulated_tee) : ordered_json(nullptr);
    return out;
}

ordered_json vm_info(const VmView& view, std::uint64_t now_ms)
{
    const Manifest& m = view.manifest;
    const State& s = view.state;
    ordered_json out;
    out["id"] = m.id;
    out["name"] = m.name;
    out["status"] = status_of(s.started, view.running, view.removing);
    out["uptime"] = elapsed(s.started_at_ms, now_ms);
    out["app_url"] = nullptr;
    out["app_id"] = m.app_id;
    out["instance_id"] = view.instance_id.empty() ? ordered_json(nullptr) : ordered_json(view.instance_id);
    out["configuration"] = view.with_configuration ? configuration(view) : ordered_json(nullptr);
    out["exited_at"] = elapsed(s.exited_at_ms, now_ms);
    out["boot_progress"] = s.boot_progress;
    out["boot_error"] = s.boot_error;
    out["shutdown_progress"] = s.shutdown_progress;
    out["image_version"] = view.image_version;
    out["events"] = ordered_json::array();
    for (const auto& event : s.events)
    {
        ordered_json item;
        item["event"] = event.event;
        item["body"] = event.body;
        item["timestamp"] = event.timestamp;
        out["events"].push_back(std::move(item));
    }
    ordered_json interface;
    interface["mode"] = "user";
    interface["backend"] = "slirp";
    interface["mac"] = mac_of(m.id);
    interface["bridge_name"] = nullptr;
    interface["netdev_id"] = "net0";
    out["interfaces"] = ordered_json::array({std::move(interface)});
    return out;
}

std::string first(const std::vector<std::string>& list) { return list.empty() ? std::string{} : list.front(); }
} // namespace

std::string status_answer(const std::vector<VmView>& views, std::size_t total, bool port_mapping, std::uint64_t now_ms)
{
    ordered_json out;
    out["vms"] = ordered_json::array();
    for (const auto& view : views) { out["vms"].push_back(vm_info(view, now_ms)); }
    out["port_mapping_enabled"] = port_mapping;
    out["total"] = total;
    return dump(out);
}

std::string info_answer(const VmView* view, std::uint64_t now_ms)
{
    ordered_json out;
    out["found"] = view != nullptr;
    out["info"] = view == nullptr ? ordered_json(nullptr) : vm_info(*view, now_ms);
    return dump(out);
}

std::string images_answer(const std::vector<Image>& images)
{
    ordered_json out;
    out["images"] = ordered_json::array();
    for (const auto& image : images)
    {
        ordered_json item;
        item["name"] = image.name;
        item["description"] = image.description;
        item["version"] = image.version;
        item["is_dev"] = image.is_dev;
        out["images"].push_back(std::move(item));
    }
    return dump(out);
}

std::string meta_answer(const Config& config)
{
    ordered_json out;
    out["kms"]["url"] = first(config.node.kms_urls);
    out["kms"]["urls"] = config.node.kms_urls;
    out["gateway"]["url"] = first(config.node.gateway_urls);
    out["gateway"]["base_domain"] = "localhost";
    out["gateway"]["port"] = 8082;
    out["gateway"]["agent_port"] = 8090;
    out["gateway"]["urls"] = config.node.gateway_urls;
    out["resources"]["max_cvm_number"] = config.max_cvm_number;
    out["resources"]["max_allocable_vcpu"] = config.max_allocable_vcpu;
    out["resources"]["max_allocable_memory_in_mb"] = config.max_allocable_memory_mb;
    out["networking"]["supported_modes"] = ordered_json::array({"user"});
    out["networking"]["default_mode"] = "user";
    out["networking"]["default_bridge"] = "";
    return dump(out);
}

std::string version_answer() { return dump(ordered_json{{"version", DSTACK_VERSION}, {"rev", "dstack-vmm-local"}}); }
std::string id_answer(std::string_view id) { return dump(ordered_json{{"id", id}}); }
std::string hash_answer(std::string_view hash) { return dump(ordered_json{{"hash", hash}}); }
std::string gpus_answer() { return R"({"gpus":[],"allow_attach_all":false})"; }

std::string reload_answer(std::uint32_t loaded, std::uint32_t updated, std::uint32_t removed)
{
    ordered_json out;
    out["loaded"] = loaded;
    out["updated"] = updated;
    out["removed"] = removed;
    return dump(out);
}

Page select(const std::vector<const Manifest*>& all, const StatusRequest& request)
{
    std::vector<std::size_t> matching;
    for (std::size_t i = 0; i < all.size(); ++i)
    {
        const Manifest& m = *all[i];
        const auto has = [&request](const std::string& text) { return text.find(request.keyword) != std::string::npos; };
        const bool wanted = request.ids.empty() || std::find(request.ids.begin(), request.ids.end(), m.id) != request.ids.end();
        if (wanted && (request.keyword.empty() || has(m.name) || has(m.id) || has(m.app_id) || has(m.image))) { matching.push_back(i); }
    }
    std::stable_sort(matching.begin(), matching.end(),
                     [&all](std::size_t a, std::size_t b) { return all[a]->created_at_ms < all[b]->created_at_ms; });
    Page out;
    out.total = matching.size();
    if (request.page == 0 || request.page_size == 0)
    {
        out.indexes = std::move(matching);
        return out;
    }
    const std::uint64_t begin = (std::uint64_t{request.page} - 1) * request.page_size;
    for (std::uint64_t i = begin; i < matching.size() && i < begin + request.page_size; ++i) { out.indexes.push_back(matching[i]); }
    return out;
}

} // namespace dstack::vmm
