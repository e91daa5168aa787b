#pragma once
#include "services/vmm-local/decide.hpp"
#include "services/vmm-local/guest_files.hpp"
#include "services/vmm-local/validate.hpp"
#include <chrono>
#include <string>
#include <vector>

namespace dstack::vmm
{

struct Config
{
    std::string listen = "127.0.0.1";
    std::uint16_t port = 9080;                                ///< 0: any free one; the log says which
    std::string state_dir = "/var/lib/dstack/vmm-local";      ///< vms/, the development seed, caches
    std::string image_dir = "/var/lib/dstack/images";         ///< guest OS images, one directory each
    std::string store_image = "/var/lib/dstack/oci/store.squashfs"; ///< container images; "": none

    NodeUrls node{{"https://10.0.2.2:8443"}, {}, {}, {}};
    std::uint32_t max_allocable_vcpu = 20;                    ///< reported, as upstream's
    std::uint32_t max_allocable_memory_mb = 100'000;
    std::uint32_t max_cvm_number = 1000;
    std::chrono::milliseconds shutdown_timeout{30'000};       ///< after ACPI power-down, until it is said that the guest ignores it
    std::uint64_t serial_max_bytes = 4 * 1024 * 1024;         ///< serial.log is rotated to serial.log.1 beyond this

    bool port_mapping = true;
    std::string port_address = "127.0.0.1";
    std::vector<PortRange> port_ranges{{"tcp", 1, 65535}, {"udp", 1, 65535}};
    RestartPolicy restart;

    std::string qemu = "qemu-system-x86_64";
    std::string accel = "auto";                               ///< auto: kvm where a probe has really booted with it
    std::uint32_t tcg_tb_size_mb = 64;
    std::chrono::milliseconds probe_timeout{2'000};
    std::chrono::milliseconds start_timeout{10'000};          ///< from starting QEMU to its first QMP answer

    bool tee_simulator = true;
    std::string host_key_file;                                ///< hex public key for the KMS; "": state_dir/tee-host.pub
    std::string bus_directory;                                ///< "": without the mesh

    std::string vms_dir() const { return state_dir + "/vms"; }
    std::string key_file() const { return host_key_file.empty() ? state_dir + "/tee-host.pub" : host_key_file; }
};

/// [vmm] listen port state_dir image_dir store_image; [cvm] kms_urls gateway_urls pccs_url docker_registry max_*
/// shutdown_timeout_ms serial_max_bytes; [port_mapping] enabled address ranges; [auto_restart]; [qemu]; [tee_simulator];
/// [bus] directory. See README.md.
Result<Config> parse_config(std::string_view toml);

} // namespace dstack::vmm
