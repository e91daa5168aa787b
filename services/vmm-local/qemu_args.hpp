#pragma once
#include "services/vmm-local/manifest.hpp"
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::vmm
{

enum class Accel { tcg, kvm };
std::string_view to_string(Accel accel);

/// Everything that a command line is made of. Paths are absolute, so that `ps` tells whose guest it is, except the monitor's:
/// the work directory is QEMU's current directory, and a unix socket's path may be at most 107 bytes long.
struct QemuPlan
{
    std::string qemu = "qemu-system-x86_64";
    Accel accel = Accel::tcg;
    std::uint32_t tcg_tb_size_mb = 64;
    std::string vm_id;
    std::string work_dir;
    std::uint32_t vcpu = 1;    ///< 0 becomes 1
    std::uint32_t memory = 0;  ///< MiB
    std::string kernel;
    std::string initrd;
    std::string cmdline;
    std::optional<std::string> bios;
    std::optional<std::string> rootfs;
    bool data_disk = false;                  ///< hda.img of the work directory
    std::optional<std::string> store_image;  ///< container images, read-only
    std::vector<PortMap> ports;
    std::string net = "10.0.2.0/24";
    std::string dhcp_start = "10.0.2.15"; ///< also where hostfwd leads: the development image takes it without asking
    std::uint32_t cid = 0; ///< with /dev/vhost-vsock only; 0: no vsock device
};

/// The disks' serial numbers: how a guest finds them whatever their letters are (/sys/block/vdX/serial).
/// The host share is also recognisable by its FAT label DSTACKSHR.
constexpr std::string_view serial_rootfs = "dstack-rootfs";
constexpr std::string_view serial_data = "dstack-data";
constexpr std::string_view serial_store = "dstack-store";
constexpr std::string_view serial_shared = "dstack-shared";

/// The order of dstack-protocol.md C.1: rootfs is vda, the data disk (if any) follows, then the store, then the share.
std::vector<std::string> qemu_arguments(const QemuPlan& plan);

/// The MAC of the first interface (B.2): "vm-123" has 96:b1:d8:b9:08:e6.
std::string mac_of(std::string_view vm_id);

/// A value inside a QEMU option list: a comma is written twice.
std::string option_value(std::string_view text);

} // namespace dstack::vmm
