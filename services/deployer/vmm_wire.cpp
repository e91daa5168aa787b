#include "services/deployer/vmm_wire.hpp"
#include <algorithm>
#include <array>
#include <charconv>
#include <nlohmann/json.hpp>

namespace dstack::deployer
{

namespace
{
using nlohmann::json;

constexpr std::size_t max_error_bytes = 2048;

Error unreadable(std::string_view method, std::string_view why)
{
    return Error{Errc::internal, "vmm " + std::string{method} + ": cannot read the answer: " + std::string{why},
                 "is the VMM's URL right?", {}};
}

Result<json> parse(std::string_view method, std::string_view text)
{
    json value = json::parse(text, nullptr, false);
    if (value.is_discarded()) { return unreadable(method, "not JSON"); }
    return value;
}

/// The member as text; null and absent read as "".
std::string text_of(const json& object, const char* key)
{
    const auto found = object.find(key);
    return found != object.end() && found->is_string() ? found->get<std::string>() : std::string{};
}

VmSight sight_of(const json& vm)
{
    return VmSight{text_of(vm, "id"),            text_of(vm, "name"),       text_of(vm, "app_id"),     text_of(vm, "status"),
                   text_of(vm, "boot_progress"), text_of(vm, "boot_error"), text_of(vm, "instance_id")};
}

std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

std::array<unsigned, 3> version_of(const ImageInfo& image)
{
    std::array<unsigned, 3> out{};
    const char* at = image.version.data();
    const char* const end = at + image.version.size();
    for (unsigned& part : out)
    {
        const auto [rest, error] = std::from_chars(at, end, part);
        if (error != std::errc{}) { break; }
        at = rest;
        if (at != end && *at == '.') { ++at; }
    }
    return out;
}
} // namespace

std::string create_vm_body(const AppFacts& app, const VmDefaults& defaults)
{
    json ports = json::array();
    for (const PortMapping& port : app.ports)
    {
        ports.push_back({{"protocol", port.protocol},
                         {"host_port", port.host_port},
                         {"vm_port", port.vm_port},
                         {"host_address", port.host_address}});
    }
    json body{{"name", app.name},
              {"image", app.image},
              {"compose_file", app.app_compose},
              {"vcpu", app.vcpu},
              {"memory", app.memory_mb},
              {"disk_size", app.disk_gb},
              {"ports", std::move(ports)},
              {"app_id", app.app_id},
              {"kms_urls", app.kms ? json(defaults.kms_urls) : json::array()},
              {"no_tee", defaults.no_tee},
              {"stopped", false},
              {"cid", app.cid}};
    if (!defaults.simulated_tee.empty()) { body["simulated_tee"] = defaults.simulated_tee; }
    return dump(body);
}

std::string id_body(std::string_view vm_id) { return dump(json{{"id", vm_id}}); }

Result<std::string> parse_id(std::string_view text)
{
    auto value = parse("CreateVm", text);
    if (!value) { return std::move(value).error(); }
    std::string id = value->is_object() ? text_of(*value, "id") : "";
    const auto fits = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_'; };
    if (id.empty() || id.size() > 64 || !std::all_of(id.begin(), id.end(), fits)) { return unreadable("CreateVm", "no VM id"); }
    return id;
}

Result<std::vector<ImageInfo>> parse_images(std::string_view text)
{
    auto value = parse("ListImages", text);
    if (!value) { return std::move(value).error(); }
    const auto found = value->is_object() ? value->find("images") : value->end();
    // Upstream's field is `images`; a bare list is taken too.
    const json* list = value->is_array() ? &*value : (value->is_object() && found != value->end() ? &*found : nullptr);
    if (list == nullptr || !list->is_array()) { return unreadable("ListImages", "no list of images"); }
    std::vector<ImageInfo> out;
    for (const json& image : *list)
    {
        if (image.is_object()) { out.push_back({text_of(image, "name"), text_of(image, "version")}); }
    }
    return out;
}

Result<std::vector<VmSight>> parse_vms(std::string_view text)
{
    auto value = parse("Status", text);
    if (!value) { return std::move(value).error(); }
    if (!value->is_object() || !value->contains("vms") || !(*value)["vms"].is_array())
    {
        return unreadable("Status", "no list of VMs");
    }
    std::vector<VmSight> out;
    for (const json& vm : (*value)["vms"])
    {
        if (vm.is_object()) { out.push_back(sight_of(vm)); }
    }
    return out;
}

Result<std::optional<VmSight>> parse_info(std::string_view text)
{
    auto value = parse("GetInfo", text);
    if (!value) { return std::move(value).error(); }
    const auto found = value->is_object() ? value->find("found") : value->end();
    if (!value->is_object() || found == value->end() || !found->is_boolean()) { return unreadable("GetInfo", "no `found`"); }
    if (!found->get<bool>()) { return std::optional<VmSight>{}; }
    const auto info = value->find("info");
    if (info == value->end() || !info->is_object()) { return unreadable("GetInfo", "found, but no `info`"); }
    return std::optional<VmSight>{sight_of(*info)};
}

Error vmm_error(std::string_view method, int status, std::string_view body)
{
    std::string message = "vmm " + std::string{method} + ": ";
    std::string text;
    const json value = json::parse(body, nullptr, false);
    if (value.is_object()) { text = text_of(value, "error"); }
    if (text.empty()) { text = "HTTP status " + std::to_string(status) + (body.empty() ? "" : ": " + std::string{body.substr(0, 200)}); }
    message += text.substr(0, max_error_bytes);
    const auto has = [&](std::string_view part) { return text.find(part) != std::string::npos; };
    // Every RPC error is a 400 (A.4), so the words decide.
    if (status == 401 || status == 403)
    {
        return Error{Errc::permission_denied, message, "the deployer's token for the VMM is missing or wrong", {}};
    }
    if (has("conflicts with VM") || has("address in use") || has("already in use")) { return Error{Errc::already_exists, message, {}, {}}; }
    if (has("not found") || has("does not exist")) { return Error{Errc::not_found, message, {}, {}}; }
    if (has("Failed to load image")) { return Error{Errc::not_found, message, "see `dstackup image list`", {}}; }
    if (has("No space left")) { return Error{Errc::resource_exhausted, message, "make room on the VMM's disk, then deploy again: `df -h`", {}}; }
    if (has("exhausted")) { return Error{Errc::resource_exhausted, message, {}, {}}; }
    if (has("Invalid ") || has("invalid ") || has("duplicate ")) { return Error{Errc::invalid_argument, message, {}, {}}; }
    if (has("not allowed") || has("disabled")) { return Error{Errc::failed_precondition, message, "the VMM's configuration forbids it", {}}; }
    return Error{status >= 500 ? Errc::internal : Errc::failed_precondition, message, {}, {}};
}

const ImageInfo* newest_image(const std::vector<ImageInfo>& images)
{
    const auto older = [](const ImageInfo& a, const ImageInfo& b)
    {
        const auto va = version_of(a);
        const auto vb = version_of(b);
        return va != vb ? va < vb : a.name < b.name;
    };
    const auto newest = std::max_element(images.begin(), images.end(), older);
    return newest == images.end() ? nullptr : &*newest;
}

} // namespace dstack::deployer
