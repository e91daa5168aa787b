#include "services/vmm-local/validate.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include <algorithm>
#include <arpa/inet.h>
#include <array>
#include <charconv>
#include <nlohmann/json.hpp>
#include <sys/stat.h>

namespace dstack::vmm
{

namespace
{
using nlohmann::json;

Error refuse(std::string text) { return Error{Errc::invalid_argument, std::move(text)}; }

constexpr std::string_view out_of_range = "out of range integral type conversion attempted";

bool is_ip(const std::string& text)
{
    std::array<unsigned char, 16> buffer{};
    return inet_pton(AF_INET, text.c_str(), buffer.data()) == 1 || inet_pton(AF_INET6, text.c_str(), buffer.data()) == 1;
}

Result<PortMap> plan_port(const PortMapping& port, const HostFacts& host)
{
    if (port.host_port > 65535) { return refuse("Invalid host port: " + std::string{out_of_range}); }
    if (port.vm_port > 65535) { return refuse("Invalid vm port: " + std::string{out_of_range}); }
    const bool allowed = std::any_of(host.port_ranges.begin(), host.port_ranges.end(),
                                     [&port](const PortRange& range) {
                                         return range.protocol == port.protocol && range.from <= port.host_port &&
                                                port.host_port <= range.to;
                                     });
    if (!allowed)
    {
        return refuse("Port mapping is not allowed for " + port.protocol + ":" + std::to_string(port.host_port));
    }
    if (port.protocol != "tcp" && port.protocol != "udp") { return refuse("Invalid protocol: " + port.protocol); }
    PortMap out;
    out.address = port.host_address.empty() ? host.port_address : port.host_address;
    if (!is_ip(out.address)) { return refuse("Invalid host address: invalid IP address syntax"); }
    out.protocol = port.protocol;
    out.from = static_cast<std::uint16_t>(port.host_port);
    out.to = static_cast<std::uint16_t>(port.vm_port);
    return out;
}

Result<std::vector<PortMap>> plan_ports(const VmConfiguration& request, const HostFacts& host)
{
    std::vector<PortMap> out;
    if (!request.ports.empty() && !host.port_mapping) { return refuse("Port mapping is disabled"); }
    for (const auto& port : request.ports)
    {
        auto planned = plan_port(port, host);
        if (!planned) { return std::move(planned).error(); }
        out.push_back(std::move(*planned));
    }
    for (std::size_t i = 0; i < out.size(); ++i)
    {
        for (std::size_t j = 0; j < i; ++j)
        {
            if (overlaps(out[i], out[j])) { return refuse("duplicate host port mapping: " + to_string(out[i])); }
        }
    }
    return out;
}

Result<Done> check_gpus(const VmConfiguration& request)
{
    if (!request.gpus) { return Done{}; }
    const GpuConfig& gpus = *request.gpus;
    if (!gpus.slots.empty() || gpus.attach_mode == "all") { return refuse("GPU is not enabled"); }
    if (gpus.attach_mode != "listed") { return refuse("Invalid GPU attach mode: " + gpus.attach_mode); }
    return Done{};
}

Result<Done> check_volumes(const json& compose)
{
    if (!compose.is_object()) { return Done{}; }
    const auto volumes = compose.find("verity_volumes");
    if (volumes == compose.end() || !volumes->is_array() || volumes->empty()) { return Done{}; }
    return refuse("volumes requested but cvm.volumes_dir is not configured");
}

constexpr std::array<std::string_view, 5> tees{"dstack-tdx", "dstack-gcp-tdx", "dstack-amd-sev-snp", "dstack-nitro-enclave",
                                               "dstack-aws-nitro-tpm"};

Result<Done> check_simulated_tee(const VmConfiguration& request, const HostFacts& host)
{
    if (!request.simulated_tee) { return Done{}; }
    if (std::find(tees.begin(), tees.end(), *request.simulated_tee) == tees.end())
    {
        return refuse("unsupported simulated_tee '" + *request.simulated_tee + "'");
    }
    if (!host.tee_simulator) { return refuse("tee simulator credentials are not configured on this VMM"); }
    return Done{};
}

Result<Done> check_key_provider(const json& compose)
{
    if (compose.is_discarded()) { return refuse("invalid app compose JSON: expected a JSON object"); }
    if (!compose.is_object()) { return refuse("invalid app compose JSON: invalid type, expected a map"); }
    const auto provider = compose.find("key_provider");
    if (provider == compose.end() || provider->is_null()) { return Done{}; }
    for (const char* known : {"none", "kms", "local", "tpm"})
    {
        if (*provider == known) { return Done{}; }
    }
    return refuse("invalid key_provider");
}

Result<Done> check_network(const Networking& network, bool singular)
{
    if (singular && network.mode.empty() && network.bridge_name.empty()) { return Done{}; }
    if (network.mode == "custom") { return refuse("custom networking mode is manifest-only"); }
    if (network.mode != "user" && network.mode != "bridge")
    {
        return refuse("unsupported networking mode '" + network.mode + "'");
    }
    if (network.mode == "user")
    {
        if (!network.bridge_name.empty()) { return refuse("bridge_name is only valid for bridge networking mode"); }
        return Done{};
    }
    if (network.bridge_name.empty() || network.bridge_name.find('/') != std::string::npos)
    {
        return refuse("bridge interface '" + network.bridge_name + "' does not exist");
    }
    struct stat info{};
    if (stat(("/sys/class/net/" + network.bridge_name + "/bridge").c_str(), &info) != 0)
    {
        return refuse("bridge interface '" + network.bridge_name + "' does not exist");
    }
    return refuse("bridge networking is not available in dstack-vmm-local: use networking mode 'user'");
}

Result<Done> check_networks(const VmConfiguration& request)
{
    if (request.networks.size() > 1) { return refuse("dstack-vmm-local gives a VM one network interface"); }
    for (const auto& network : request.networks)
    {
        auto checked = check_network(network, false);
        if (!checked) { return checked; }
    }
    if (request.networks.empty() && request.networking) { return check_network(*request.networking, true); }
    return Done{};
}

bool valid_manifest_version(const json& value)
{
    if (value.is_number_unsigned())
    {
        const auto number = *value.get_ptr<const json::number_unsigned_t*>();
        return number == 1 || number == 2;
    }
    if (!value.is_string()) { return false; }
    const auto& text = *value.get_ptr<const std::string*>();
    return !text.empty() && text.size() <= 9 && text[0] != '0' &&
           std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}
} // namespace

Result<PortRange> parse_port_range(std::string_view text)
{
    const auto bad = [&] { return refuse("\"" + std::string{text} + "\" is no port range: write \"tcp:1-20000\""); };
    PortRange out;
    const auto colon = text.find(':');
    const auto dash = text.find('-', colon == std::string_view::npos ? 0 : colon);
    if (colon == std::string_view::npos || dash == std::string_view::npos) { return bad(); }
    out.protocol = text.substr(0, colon);
    const auto number = [](std::string_view part, std::uint16_t& value)
    {
        const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), value);
        return error == std::errc{} && end == part.data() + part.size();
    };
    if ((out.protocol != "tcp" && out.protocol != "udp") || !number(text.substr(colon + 1, dash - colon - 1), out.from) ||
        !number(text.substr(dash + 1), out.to) || out.from == 0 || out.from > out.to)
    {
        return bad();
    }
    return out;
}

bool valid_name(std::string_view name)
{
    constexpr std::string_view others = "-_. @~!$^()";
    return std::all_of(name.begin(), name.end(),
                       [&](char c)
                       {
                           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                                  others.find(c) != std::string_view::npos;
                       });
}

std::string compose_hash(std::string_view compose) { return crypto::to_hex(crypto::sha256(compose)); }

std::string app_id_of(const VmConfiguration& request)
{
    if (!request.app_id) { return compose_hash(request.compose_file).substr(0, 40); }
    std::string out = *request.app_id;
    if (out.rfind("0x", 0) == 0) { out.erase(0, 2); }
    std::transform(out.begin(), out.end(), out.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    return out;
}

Result<Manifest> plan_vm(const VmConfiguration& request, const HostFacts& host)
{
    if (!valid_name(request.name)) { return refuse("Invalid name: " + request.name); }
    auto ports = plan_ports(request, host);
    if (!ports) { return std::move(ports).error(); }
    const json compose = json::parse(request.compose_file, nullptr, false);
    auto checked = check_gpus(request);
    if (checked) { checked = check_volumes(compose); }
    if (checked) { checked = check_simulated_tee(request, host); }
    if (checked) { checked = check_key_provider(compose); }
    if (checked) { checked = check_networks(request); }
    if (!checked) { return std::move(checked).error(); }
    for (const Manifest* other : host.others)
    {
        for (const auto& theirs : other->port_map)
        {
            for (const auto& ours : *ports)
            {
                if (overlaps(ours, theirs))
                {
                    return Error{Errc::already_exists,
                                 "host port mapping conflicts with VM " + other->id + ": " + to_string(ours)};
                }
            }
        }
    }
    if (request.vm_id && !valid_vm_id(*request.vm_id)) { return refuse("invalid VM id"); }

    Manifest out;
    out.name = request.name;
    out.app_id = app_id_of(request);
    out.vcpu = request.vcpu;
    out.memory = request.memory;
    out.disk_size = request.disk_size;
    out.image = request.image;
    out.port_map = std::move(*ports);
    out.hugepages = request.hugepages;
    out.pin_numa = request.pin_numa;
    out.kms_urls = request.kms_urls;
    out.gateway_urls = request.gateway_urls;
    out.no_tee = request.no_tee || request.simulated_tee.has_value();
    out.simulated_tee = request.simulated_tee;
    out.cid = request.cid;
    return out;
}

Result<Done> check_app_compose(std::string_view compose)
{
    const json document = json::parse(compose, nullptr, false);
    if (document.is_discarded()) { return refuse("Invalid compose file: expected a JSON object"); }
    if (!document.is_object()) { return refuse("Invalid compose file: invalid type, expected a map"); }
    for (const char* key : {"manifest_version", "name", "runner"})
    {
        if (!document.contains(key)) { return refuse(std::string{"Invalid compose file: missing field `"} + key + "`"); }
    }
    if (!valid_manifest_version(document.find("manifest_version").value()))
    {
        return refuse("Invalid compose file: invalid manifest_version");
    }
    for (const char* key : {"name", "runner"})
    {
        if (!document.find(key).value().is_string())
        {
            return refuse(std::string{"Invalid compose file: invalid type of `"} + key + "`, expected a string");
        }
    }
    return Done{};
}

} // namespace dstack::vmm
