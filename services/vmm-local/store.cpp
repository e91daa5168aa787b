#include "services/vmm-local/store.hpp"
#include "services/vmm-local/decide.hpp"
#include "services/vmm-local/validate.hpp"
#include "shared/attestation/simulated.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/process/fd.hpp"
#include "shared/state/files.hpp"
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <dirent.h>
#include <fcntl.h>
#include <memory>
#include <sys/stat.h>
#include <unistd.h>

namespace dstack::vmm
{

namespace
{
constexpr std::string_view being_made = ".new-";
constexpr std::string_view being_removed = ".gone-";
constexpr std::size_t max_compose = 50ULL * 1024 * 1024;
constexpr std::size_t max_small = 1024 * 1024;

bool exists(const std::string& path)
{
    struct stat info{};
    return lstat(path.c_str(), &info) == 0;
}

std::string read_optional(const std::string& path, std::size_t max_bytes)
{
    auto text = state::read_file(path, max_bytes);
    return text ? std::move(*text) : std::string{};
}

Result<Done> write_files(const std::string& dir, const VmFiles& files)
{
    const std::pair<const char*, const std::string*> shared[] = {{"/shared/app-compose.json", &files.compose_file},
                                                                 {"/shared/.instance_info", &files.instance_info},
                                                                 {"/shared/.encrypted-env", &files.encrypted_env},
                                                                 {"/shared/.user-config", &files.user_config}};
    auto done = state::make_dirs(dir + "/shared", 0700);
    for (const auto& [name, text] : shared)
    {
        const bool always = text == &files.compose_file;
        if (done && (always || !text->empty())) { done = state::write_file_atomic(dir + name, *text, 0600); }
    }
    if (done) { done = write_state(dir, files.state); }
    // Last: a directory with a manifest is complete.
    if (done) { done = state::write_file_atomic(dir + "/vm-manifest.json", encode(files.manifest), 0600); }
    return done;
}
} // namespace

Result<Done> create_vm_dir(const std::string& vms_dir, const VmFiles& files)
{
    const std::string fresh = vms_dir + "/" + std::string{being_made} + files.manifest.id;
    const std::string dir = vms_dir + "/" + files.manifest.id;
    if (exists(dir)) { return Error{Errc::already_exists, "VM " + files.manifest.id + " already exists", {}, {}}; }
    auto done = write_files(fresh, files);
    if (done && std::rename(fresh.c_str(), dir.c_str()) != 0) { done = errno_error("rename " + fresh, errno); }
    if (!done)
    {
        (void)state::remove_tree(fresh); // what cannot be removed now goes at the next start
        return done;
    }
    return state::fsync_dir(vms_dir);
}

Result<Done> mark_removing(const std::string& vm_dir) { return state::write_file_atomic(vm_dir + "/.removing", "", 0600); }

Result<Done> remove_vm_dir(const std::string& vms_dir, const std::string& id)
{
    const std::string dir = vms_dir + "/" + id;
    const std::string gone = vms_dir + "/" + std::string{being_removed} + id;
    if (exists(dir))
    {
        auto removed = state::remove_tree(gone);
        if (!removed) { return removed; }
        if (std::rename(dir.c_str(), gone.c_str()) != 0) { return errno_error("rename " + dir, errno); }
        auto synced = state::fsync_dir(vms_dir);
        if (!synced) { return synced; }
    }
    auto removed = state::remove_tree(gone);
    if (!removed) { return removed; }
    return state::fsync_dir(vms_dir);
}

std::optional<FoundVm> read_vm(const std::string& vms_dir, const std::string& id)
{
    FoundVm out;
    out.id = id;
    out.dir = vms_dir + "/" + id;
    if (!valid_vm_id(id) || !exists(out.dir)) { return std::nullopt; }
    out.removing = exists(out.dir + "/.removing");
    if (const auto text = state::read_file(out.dir + "/qemu.pid", 4096))
    {
        auto who = process::decode(*text);
        if (who) { out.process = std::move(*who); }
    }
    const auto manifest_text = state::read_file(out.dir + "/vm-manifest.json", max_small);
    if (!manifest_text)
    {
        out.damage = manifest_text.error();
        return out;
    }
    auto manifest = decode_manifest(*manifest_text);
    if (!manifest) { out.damage = manifest.error(); }
    else if (manifest->id != id) { out.damage = Error{Errc::data_loss, "vm-manifest.json is of VM " + manifest->id, {}, {}}; }
    else { out.manifest = std::move(*manifest); }
    const auto state_text = state::read_file(out.dir + "/vm-state.json", max_small);
    if (state_text)
    {
        auto state = decode_state(*state_text);
        if (state) { out.state = std::move(*state); }
        else if (!out.damage) { out.damage = state.error(); }
    }
    else if (state_text.error().code != Errc::not_found && !out.damage) { out.damage = state_text.error(); }
    out.compose_hash = compose_hash(read_optional(out.dir + "/shared/app-compose.json", max_compose));
    out.instance_info = read_optional(out.dir + "/shared/.instance_info", max_small);
    return out;
}

Result<std::vector<FoundVm>> scan_vms(const std::string& vms_dir, bool recover)
{
    const std::unique_ptr<DIR, int (*)(DIR*)> dir{opendir(vms_dir.c_str()), closedir};
    if (!dir) { return errno_error("read " + vms_dir, errno); }
    std::vector<std::string> names;
    while (const dirent* entry = readdir(dir.get())) { names.emplace_back(entry->d_name); }
    std::vector<FoundVm> out;
    for (const auto& name : names)
    {
        if (name.starts_with(being_made) || name.starts_with(being_removed))
        {
            if (!recover) { continue; }
            auto removed = state::remove_tree(vms_dir + "/" + name);
            if (!removed) { return std::move(removed).error(); }
            continue;
        }
        if (auto found = read_vm(vms_dir, name)) { out.push_back(std::move(*found)); }
    }
    return out;
}

Result<Done> write_state(const std::string& vm_dir, const State& state)
{
    return state::write_file_atomic(vm_dir + "/vm-state.json", encode(state), 0600);
}

Result<Done> write_pid(const std::string& vm_dir, const process::Identity& who)
{
    return state::write_file_atomic(vm_dir + "/qemu.pid", process::encode(who), 0600);
}

void forget_pid(const std::string& vm_dir) { unlink((vm_dir + "/qemu.pid").c_str()); }

Result<Done> prepare_share(const std::string& vm_dir, const ShareInput& input)
{
    const std::string shared = vm_dir + "/shared/";
    auto done = state::write_file_atomic(shared + ".sys-config.json", input.sys_config, 0600);
    if (!done) { return done; }
    if (input.tee_simulator.empty()) { unlink((shared + ".tee-simulator.json").c_str()); }
    else
    {
        done = state::write_file_atomic(shared + ".tee-simulator.json", input.tee_simulator, 0600);
        if (!done) { return done; }
    }
    std::vector<ShareFile> files;
    auto compose = state::read_file(shared + "app-compose.json", max_compose);
    if (!compose) { return std::move(compose).error(); }
    files.push_back({"app-compose.json", std::move(*compose)});
    files.push_back({".sys-config.json", input.sys_config});
    if (!input.tee_simulator.empty()) { files.push_back({".tee-simulator.json", input.tee_simulator}); }
    for (const char* name : {".instance_info", ".encrypted-env", ".user-config"})
    {
        auto text = state::read_file(shared + name, max_compose);
        if (text) { files.push_back({name, std::move(*text)}); }
        else if (text.error().code != Errc::not_found) { return std::move(text).error(); }
    }
    return write_fat32(vm_dir + "/shared.img", share_label, share_size_bytes, files);
}

Result<Done> write_instance_info(const std::string& vm_dir, const std::string& text)
{
    return state::write_file_atomic(vm_dir + "/shared/.instance_info", text, 0600);
}

std::string read_tail(const std::string& path, std::size_t max_bytes)
{
    const process::Fd fd{open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    struct stat info{};
    if (!fd || fstat(fd.get(), &info) != 0) { return {}; }
    const auto size = static_cast<std::uint64_t>(info.st_size);
    std::string out(static_cast<std::size_t>(std::min<std::uint64_t>(size, max_bytes)), '\0');
    const ssize_t n = pread(fd.get(), out.data(), out.size(), static_cast<off_t>(size - out.size()));
    out.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
    return out;
}

Result<Done> keep_serial_log(const std::string& vm_dir, std::uint64_t max_bytes, bool boot, std::string_view now)
{
    const std::string log = vm_dir + "/serial.log";
    const process::Fd fd{open(log.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600)};
    if (!fd) { return errno_error("open " + log, errno); }
    struct stat info{};
    if (fstat(fd.get(), &info) != 0) { return errno_error("stat " + log, errno); }
    // The log collector is another user, in our group: it reads the console, and nothing else here. The umask has no say.
    if (chmod(vm_dir.c_str(), 0710) != 0 || fchmod(fd.get(), 0640) != 0) { return errno_error("open to the group: " + log, errno); }
    std::string note;
    if (static_cast<std::uint64_t>(info.st_size) > max_bytes)
    {
        std::rename((log + ".2").c_str(), (log + ".3").c_str());
        std::rename((log + ".1").c_str(), (log + ".2").c_str());
        const process::Fd copy{open((log + ".1").c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600)};
        if (!copy || fchmod(copy.get(), 0640) != 0) { return errno_error("open " + log + ".1", errno); }
        off_t at = 0;
        while (at < info.st_size)
        {
            const ssize_t n = copy_file_range(fd.get(), &at, copy.get(), nullptr, static_cast<std::size_t>(info.st_size - at), 0);
            if (n < 0 && errno == EINTR) { continue; }
            if (n <= 0) { return errno_error("copy " + log, errno); }
        }
        if (ftruncate(fd.get(), 0) != 0) { return errno_error("truncate " + log, errno); }
        note = "===== rotated " + std::to_string(info.st_size) + " bytes to serial.log.1 @ " + std::string{now} + " =====\n";
    }
    if (boot) { note += "\n" + std::string{boot_marker} + std::string{now} + " =====\n\n"; }
    if (!note.empty() && write(fd.get(), note.data(), note.size()) != static_cast<ssize_t>(note.size()))
    {
        return errno_error("write " + log, errno);
    }
    return Done{};
}

Result<HostKeys> load_host_keys(const std::string& seed_file, const std::string& public_key_file)
{
    auto text = state::read_file(seed_file, 4096);
    crypto::Bytes32 seed{};
    if (text)
    {
        struct stat info{};
        if (stat(seed_file.c_str(), &info) != 0) { return errno_error("read " + seed_file, errno); }
        if ((info.st_mode & 077) != 0)
        {
            return Error{Errc::permission_denied, seed_file + " can be read by others", "chmod 600 " + seed_file, {}};
        }
        while (!text->empty() && text->back() == '\n') { text->pop_back(); }
        auto bytes = crypto::from_hex_fixed<32>(*text);
        if (!bytes) { return std::move(bytes).error().within("read " + seed_file); }
        seed = *bytes;
    }
    else if (text.error().code == Errc::not_found)
    {
        seed = crypto::random_fixed<32>();
        auto written = state::write_file_atomic(seed_file, crypto::to_hex(seed) + "\n", 0600);
        if (!written) { return std::move(written).error(); }
    }
    else { return std::move(text).error(); }
    // The public key follows from the seed: written again when it is missing or wrong, so that the two always match.
    const std::string key = crypto::to_hex(attestation::host_public_key(seed)) + "\n";
    const auto known = state::read_file(public_key_file, 4096);
    if (!known || *known != key)
    {
        auto written = state::write_file_atomic(public_key_file, key, 0644);
        if (!written) { return std::move(written).error(); }
    }
    return HostKeys{crypto::text(seed)};
}

} // namespace dstack::vmm
