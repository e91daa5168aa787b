#pragma once
#include "services/vmm-local/fat32.hpp"
#include "services/vmm-local/manifest.hpp"
#include "services/vmm-local/messages.hpp"
#include "shared/process/identity.hpp"
#include <optional>
#include <string>
#include <vector>

namespace dstack::vmm
{

// The work directories on disk (B.13). Everything here blocks: call it through offload(). Each function leaves either
// what was or what is wanted, also when the process dies in the middle of it.

/// All of one VM's files.
struct VmFiles
{
    Manifest manifest;
    State state;
    std::string compose_file;
    std::string instance_info; ///< may be empty
    std::string encrypted_env; ///< raw; may be empty
    std::string user_config;   ///< may be empty
};

/// Makes `<vms>/<id>` as a whole: built under another name, made durable, renamed. On an error nothing is left.
Result<Done> create_vm_dir(const std::string& vms_dir, const VmFiles& files);

/// Removes it as a whole: renamed away first, so that a half-removed VM is never taken for one.
Result<Done> remove_vm_dir(const std::string& vms_dir, const std::string& id);
/// Says durably that the VM is to be removed.
Result<Done> mark_removing(const std::string& vm_dir);

/// What a restart of the VMM finds.
struct FoundVm
{
    std::string id;
    std::string dir;
    bool removing = false;
    Manifest manifest;
    State state;
    std::string compose_hash;
    std::string instance_info;
    std::optional<process::Identity> process; ///< of qemu.pid
    std::optional<Error> damage;              ///< the manifest or state cannot be read: the VM is left alone
};
/// Reads every VM; with `recover`, at start-up, what a crash left half made or half removed is removed first.
Result<std::vector<FoundVm>> scan_vms(const std::string& vms_dir, bool recover);
/// One of them; nothing when there is no such directory.
std::optional<FoundVm> read_vm(const std::string& vms_dir, const std::string& id);

Result<Done> write_state(const std::string& vm_dir, const State& state);
Result<Done> write_pid(const std::string& vm_dir, const process::Identity& who);
void forget_pid(const std::string& vm_dir);

/// The files that the guest reads, from shared/ and what is made anew at each start; also writes shared.img.
struct ShareInput
{
    std::string sys_config;
    std::string tee_simulator; ///< empty: none
};
Result<Done> prepare_share(const std::string& vm_dir, const ShareInput& input);
Result<Done> write_instance_info(const std::string& vm_dir, const std::string& text);

/// Rotates serial.log when it is longer than `max_bytes` (in place: QEMU goes on appending to the same file), and
/// writes a boot marker when `boot` is set.
Result<Done> keep_serial_log(const std::string& vm_dir, std::uint64_t max_bytes, bool boot, std::string_view now);

/// At most the last `max_bytes` of a file; empty when it cannot be read.
std::string read_tail(const std::string& path, std::size_t max_bytes);

/// The host's development seed, created with mode 0600 when absent, and the public key file beside it.
struct HostKeys
{
    std::string seed; ///< 32 bytes
};
Result<HostKeys> load_host_keys(const std::string& seed_file, const std::string& public_key_file);

} // namespace dstack::vmm
