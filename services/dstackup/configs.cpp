#include "services/dstackup/configs.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"

namespace dstack::up
{

namespace
{
constexpr std::string_view header = "# Written by dstackup dev up; once edited, this file is left alone. sha256:";

std::string digest_of(std::string_view text) { return crypto::to_hex(crypto::sha256(text)); }

std::string pair(std::string_view key, std::string_view value)
{
    return std::string{key} + " = " + toml_quote(value) + "\n";
}

std::string pair(std::string_view key, std::uint16_t value)
{
    return std::string{key} + " = " + std::to_string(value) + "\n";
}
} // namespace

std::vector<File> service_configs(const Settings& settings,
                                  const std::function<std::string(const Service&)>& program_of)
{
    const Layout at{settings.prefix};
    const auto state = [&](std::string_view service) { return pair("state_dir", at.state(service)); };
    const std::string on_bus = "\n[bus]\n" + pair("directory", at.bus());
    const std::string kms_url = "https://127.0.0.1:" + std::to_string(settings.kms_port);
    // 10.0.2.2 is this host, as QEMU's user network shows it to a guest.
    const std::string guests_kms = "kms_urls = [\"https://10.0.2.2:" + std::to_string(settings.kms_port) + "\"]\n";
    const std::string host_key = at.state("vmm-local") + "/tee-host.pub";

    std::string identity = "\n[identity.services] # who a peer is: the executable that the kernel names for its pid\n";
    std::string kms_program;
    for (const auto& service : roster)
    {
        if (service.name != "bus") { identity += pair(service.name, "exe:" + program_of(service)); }
    }
    for (const auto& service : grandchildren)
    {
        kms_program = program_of(service);
        identity += pair(service.name, "exe:" + kms_program);
    }
    return {
        {at.config("bus"),
         "[bus]\n" + pair("directory", at.bus()) + pair("journal", at.state("bus") + "/journal.db") + identity},
        {at.config("auth"), "[auth]\n" + pair("port", settings.auth_port) + pair("policy_file", at.policy()) +
                                pair("ledger_dir", at.state("auth")) + on_bus},
        {at.config("allocator"), "[allocator]\n" + state("allocator") + (settings.leases.empty() ? "" : pair("leases", settings.leases)) + on_bus},
        {at.config("logs"), "[logs]\n" + pair("socket", at.run() + "/logs.sock") + pair("store_dir", at.state("logs")) +
                                pair("vm_root", at.state("vmm-local") + "/vms") + pair("service_log_dir", at.logs()) +
                                on_bus},
        {at.config("deployer"), "[deployer]\n" + state("deployer") + "\n[vmm]\n" +
                                    pair("url", "http://127.0.0.1:" + std::to_string(settings.vmm_port)) +
                                    pair("simulated_tee", "dstack-tdx") + guests_kms + on_bus},
        {at.config("kms-supervisor"), "[kms]\n" + pair("url", kms_url) + pair("program", kms_program) +
                                          pair("config", at.config("kms-local")) + pair("log", at.log("kms-local")) +
                                          state("kms-supervisor") + on_bus},
        {at.config("kms-local"), "[kms]\n" + pair("port", settings.kms_port) + state("kms-local") +
                                     pair("auth_url", "http://127.0.0.1:" + std::to_string(settings.auth_port)) +
                                     pair("tee_host_key_file", host_key) + on_bus},
        {at.config("vmm-local"), "[vmm]\n" + pair("port", settings.vmm_port) + state("vmm-local") +
                                     pair("image_dir", at.images()) +
                                     pair("store_image", at.oci() + "/store.squashfs") + "\n[cvm]\n" + guests_kms +
                                     "\n[tee_simulator]\n" + pair("host_key_file", host_key) + on_bus},
    };
}

std::string managed(const std::string& text) { return std::string{header} + digest_of(text) + "\n" + text; }

bool is_unedited(std::string_view file)
{
    if (!file.starts_with(header)) { return false; }
    const auto end = file.find('\n');
    if (end == std::string_view::npos) { return false; }
    return file.substr(header.size(), end - header.size()) == digest_of(file.substr(end + 1));
}

} // namespace dstack::up
