#include "services/vmm-local/qemu_args.hpp"
#include "shared/crypto/hash.hpp"
#include <array>
#include <cstdio>

namespace dstack::vmm
{

std::string_view to_string(Accel accel) { return accel == Accel::kvm ? "kvm" : "tcg"; }

std::string mac_of(std::string_view vm_id)
{
    const auto hash = crypto::sha256(vm_id);
    std::array<char, 18> out{};
    std::snprintf(out.data(), out.size(), "%02x:%02x:%02x:%02x:%02x:%02x", (hash[0] & 0xfeU) | 0x02U, hash[1], hash[2], hash[3],
                  hash[4], hash[5]);
    return out.data();
}

std::string option_value(std::string_view text)
{
    std::string out;
    for (const char c : text)
    {
        out.push_back(c);
        if (c == ',') { out.push_back(c); }
    }
    return out;
}

namespace
{
void add_disk(std::vector<std::string>& args, const std::string& id, const std::string& file, std::string_view format,
              bool readonly, std::string_view serial)
{
    // File locks would only keep two read-only users of an image apart when one of them is a writer elsewhere.
    args.insert(args.end(), {"-drive", "file=" + option_value(file) + ",if=none,id=" + id + ",format=" + std::string{format} +
                                           (readonly ? ",readonly=on" : "")});
    args.insert(args.end(), {"-device", "virtio-blk-pci,drive=" + id + ",serial=" + std::string{serial}});
}
} // namespace

std::vector<std::string> qemu_arguments(const QemuPlan& p)
{
    std::vector<std::string> args{p.qemu};
    const auto add = [&args](std::initializer_list<std::string> more) { args.insert(args.end(), more); };
    if (p.accel == Accel::kvm) { add({"-accel", "kvm", "-cpu", "host"}); }
    else { add({"-accel", "tcg,thread=multi,tb-size=" + std::to_string(p.tcg_tb_size_mb), "-cpu", "max"}); }
    add({"-display", "none", "-nodefaults", "-no-user-config", "-no-reboot"});
    add({"-name", "dstack-" + option_value(p.vm_id)});
    add({"-chardev", "file,id=com0,append=on,path=" + option_value(p.work_dir) + "/serial.log", "-serial", "chardev:com0"});
    add({"-qmp", "unix:qmp.sock,server=on,wait=off"});
    if (p.bios) { add({"-bios", *p.bios}); }
    add({"-kernel", p.kernel, "-initrd", p.initrd});
    if (p.rootfs) { add_disk(args, "hd0", *p.rootfs, "raw", true, serial_rootfs); }
    if (p.data_disk) { add_disk(args, "hd1", p.work_dir + "/hda.img", "qcow2", false, serial_data); }
    if (p.store_image) { add_disk(args, "store", *p.store_image, "raw", true, serial_store); }

    std::string netdev = "user,id=net0,net=" + p.net + ",dhcpstart=" + p.dhcp_start + ",restrict=no";
    for (const auto& port : p.ports)
    {
        netdev += ",hostfwd=" + port.protocol + ":" + port.address + ":" + std::to_string(port.from) + "-:" + std::to_string(port.to);
    }
    add({"-netdev", netdev, "-device", "virtio-net-pci,netdev=net0,romfile=,mac=" + mac_of(p.vm_id)});
    add({"-smbios", "type=1,manufacturer=dstack,product=dstack"});
    if (p.cid != 0) { add({"-device", "vhost-vsock-pci,guest-cid=" + std::to_string(p.cid)}); }
    add_disk(args, "hd2", p.work_dir + "/shared.img", "raw", true, serial_shared);
    add({"-machine", p.accel == Accel::kvm ? "q35,kernel-irqchip=split,hpet=off" : "q35"});
    add({"-smp", std::to_string(p.vcpu == 0 ? 1 : p.vcpu), "-m", std::to_string(p.memory) + "M"});
    if (!p.cmdline.empty()) { add({"-append", p.cmdline}); }
    return args;
}

} // namespace dstack::vmm
