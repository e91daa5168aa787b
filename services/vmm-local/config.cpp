#include "services/vmm-local/config.hpp"
#include "shared/config/config.hpp"

namespace dstack::vmm
{

namespace
{
void read_ranges(config::Section& section, Config& out)
{
    std::vector<std::string> texts;
    section.read("ranges", texts);
    if (texts.empty()) { return; }
    out.port_ranges.clear();
    for (const auto& text : texts)
    {
        auto range = parse_port_range(text);
        if (range) { out.port_ranges.push_back(*range); }
        else { section.refuse("ranges", range.error().message); }
    }
}
} // namespace

Result<Config> parse_config(std::string_view toml)
{
    auto document = config::Document::parse(toml);
    if (!document) { return std::move(document).error(); }
    Config out;
    auto vmm = document->section("vmm");
    vmm.read("listen", out.listen).read("port", out.port, 0, 65535).read("state_dir", out.state_dir);
    vmm.read("image_dir", out.image_dir).read("store_image", out.store_image);
    if (out.state_dir.empty() || out.state_dir[0] != '/') { vmm.refuse("state_dir", "must be an absolute path"); }
    if (out.image_dir.empty() || out.image_dir[0] != '/') { vmm.refuse("image_dir", "must be an absolute path"); }

    auto cvm = document->section("cvm");
    cvm.read("kms_urls", out.node.kms_urls).read("gateway_urls", out.node.gateway_urls);
    cvm.read("pccs_url", out.node.pccs_url).read("docker_registry", out.node.docker_registry);
    cvm.read("max_allocable_vcpu", out.max_allocable_vcpu, 1, 65536);
    cvm.read("max_allocable_memory_in_mb", out.max_allocable_memory_mb, 1, 1'000'000'000);
    cvm.read("max_cvm_number", out.max_cvm_number, 1, 1'000'000);
    cvm.read_ms("shutdown_timeout_ms", out.shutdown_timeout, 100, 600'000);
    cvm.read("serial_max_bytes", out.serial_max_bytes, 4096, 1'000'000'000);

    auto ports = document->section("port_mapping");
    ports.read("enabled", out.port_mapping).read("address", out.port_address);
    read_ranges(ports, out);

    auto restart = document->section("auto_restart");
    restart.read("enabled", out.restart.enabled).read("max_retries", out.restart.max_retries, 0, 1000);
    restart.read("initial_backoff_ms", out.restart.initial_backoff_ms, 1, 3'600'000);
    restart.read("max_backoff_ms", out.restart.max_backoff_ms, 1, 3'600'000);
    restart.read("reset_window_ms", out.restart.reset_window_ms, 1, 86'400'000);
    if (out.restart.initial_backoff_ms > out.restart.max_backoff_ms)
    {
        restart.refuse("initial_backoff_ms", "must not be larger than max_backoff_ms");
    }

    auto qemu = document->section("qemu");
    qemu.read("path", out.qemu).read_choice("accel", out.accel, {"auto", "tcg", "kvm"});
    qemu.read("tcg_tb_size_mb", out.tcg_tb_size_mb, 1, 4096).read_ms("probe_timeout_ms", out.probe_timeout, 100, 60'000);
    qemu.read_ms("start_timeout_ms", out.start_timeout, 100, 300'000);

    auto simulator = document->section("tee_simulator");
    simulator.read("enabled", out.tee_simulator).read("host_key_file", out.host_key_file);
    document->section("bus").read("directory", out.bus_directory);
    auto complete = document->finish();
    if (!complete) { return std::move(complete).error(); }
    return out;
}

} // namespace dstack::vmm
