#include "services/vmm-local/accel_probe.hpp"
#include "shared/log/log.hpp"
#include "shared/process/process.hpp"
#include "shared/state/files.hpp"
#include <array>
#include <cerrno>
#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <sys/stat.h>
#include <sys/utsname.h>

namespace dstack::vmm
{

namespace
{
using nlohmann::json;

/// Writes "DSTACK-OK\n" to the first serial port, then 0x10 to the debug port: QEMU exits with (0x10 << 1) | 1.
constexpr std::array<unsigned char, 38> boot_code{
    0x31, 0xc0,       // xor ax, ax
    0x8e, 0xd8,       // mov ds, ax
    0xbe, 0x1b, 0x7c, // mov si, 0x7c1b: the text
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xac,             // lodsb
    0x84, 0xc0,       // test al, al
    0x74, 0x03,       // jz +3
    0xee,             // out dx, al
    0xeb, 0xf8,       // jmp -8
    0xba, 0xf4, 0x00, // mov dx, 0xf4
    0xb0, 0x10,       // mov al, 0x10
    0xee,             // out dx, al
    0xf4,             // hlt
    0xeb, 0xfd,       // jmp -3
    'D',  'S',  'T',  'A', 'C', 'K', '-', 'O', 'K', '\n', 0};
constexpr int boot_exit_code = 33;
constexpr std::size_t disk_size = 1024 * 1024; // the firmware does not boot from a disk of one sector

std::string boot_disk()
{
    std::string out(disk_size, '\0');
    for (std::size_t i = 0; i < boot_code.size(); ++i) { out[i] = static_cast<char>(boot_code[i]); }
    out[510] = 0x55;
    out[511] = static_cast<char>(0xaa);
    return out;
}

std::string host_kernel()
{
    utsname name{};
    if (uname(&name) != 0) { return "unknown"; }
    return std::string{name.release} + " " + name.version;
}

std::string last_line(std::string_view text)
{
    while (!text.empty() && text.back() == '\n') { text.remove_suffix(1); }
    return std::string{text.substr(text.rfind('\n') + 1)};
}
} // namespace

AccelProbe::AccelProbe(Loop& loop, const Config& config) : loop_(loop), config_(config), lock_(loop) {}

std::string AccelProbe::key_of(std::string_view what) const { return host_kernel() + "|qemu " + version_ + "|" + std::string{what}; }

Task<Result<Done>> AccelProbe::read_version()
{
    const std::vector<std::string> argv{config_.qemu, "--version"};
    auto output = co_await process::run(loop_, argv, milliseconds{10'000}, 4096);
    if (!output) { co_return std::move(output).error(); }
    constexpr std::string_view before = "version ";
    const auto at = output->out.find(before);
    if (!output->exit.ok() || at == std::string::npos)
    {
        co_return Error{Errc::failed_precondition, config_.qemu + " --version: " + process::to_string(output->exit), {}, {}};
    }
    const auto begin = at + before.size();
    version_ = output->out.substr(begin, output->out.find_first_of(" \n(", begin) - begin);
    co_return Done{};
}

Task<Result<Done>> AccelProbe::remember(std::string key, bool works)
{
    known_[key] = works;
    json document = json::object();
    for (const auto& [name, value] : known_) { document[name] = value; }
    std::string text = document.dump(1) + "\n";
    const std::string path = config_.state_dir + "/accel-probe.json";
    auto write = [path, text = std::move(text)] { return state::write_file_atomic(path, text, 0644); };
    auto written = co_await offload(loop_, write);
    co_return written;
}

Task<Result<bool>> AccelProbe::firmware_boots()
{
    const std::string path = config_.state_dir + "/accel-probe.img";
    auto write = [path] { return state::write_file_atomic(path, boot_disk(), 0600); };
    auto written = co_await offload(loop_, write);
    if (!written) { co_return std::move(written).error(); }
    std::vector<std::string> argv{config_.qemu, "-accel", "kvm", "-cpu", "host", "-M", "q35", "-m", "32", "-nodefaults"};
    argv.insert(argv.end(), {"-no-user-config", "-display", "none", "-no-reboot", "-drive"});
    argv.push_back("file=" + option_value(path) + ",if=none,id=d,format=raw,readonly=on");
    argv.insert(argv.end(), {"-device", "virtio-blk-pci,drive=d,bootindex=1"});
    argv.insert(argv.end(), {"-device", "isa-debug-exit,iobase=0xf4,iosize=1"});
    auto output = co_await process::run(loop_, argv, config_.probe_timeout, 4096);
    if (!output && output.error().code != Errc::deadline_exceeded) { co_return std::move(output).error(); }
    const bool works = output && output->exit.signal == 0 && output->exit.code == boot_exit_code;
    log::info("kvm probed with a boot sector",
              {{"works", works}, {"detail", output ? process::to_string(output->exit) + " " + last_line(output->err) : output.error().message}});
    co_return works;
}

Task<Result<bool>> AccelProbe::kernel_boots(std::string kernel)
{
    std::vector<std::string> argv{config_.qemu, "-accel", "kvm", "-cpu", "host", "-M", "q35", "-m", "256", "-nodefaults"};
    argv.insert(argv.end(), {"-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", kernel});
    argv.insert(argv.end(), {"-append", "console=ttyS0 panic=-1"});
    const milliseconds limit = config_.probe_timeout * 5;
    process::Spec spec;
    spec.argv = std::move(argv);
    spec.max_output = 512 * 1024;
    auto output = co_await process::run(loop_, spec, limit);
    if (!output && output.error().code != Errc::deadline_exceeded) { co_return std::move(output).error(); }
    const bool works = output && output->exit.ok() && output->out.find("Kernel panic - not syncing: VFS") != std::string::npos;
    log::info("kvm probed with the guest's kernel",
              {{"works", works}, {"kernel", kernel}, {"detail", output ? last_line(output->out) : output.error().message}});
    co_return works;
}

Task<Result<Done>> AccelProbe::prepare()
{
    auto guard = co_await lock_.lock();
    if (version_.empty())
    {
        auto version = co_await read_version();
        if (!version) { co_return version; }
    }
    if (config_.accel != "auto") { co_return Done{}; }
    if (!loaded_)
    {
        const std::string path = config_.state_dir + "/accel-probe.json";
        auto read = [path] { return state::read_file(path, 1024 * 1024); };
        auto text = co_await offload(loop_, read);
        const json document = text ? json::parse(*text, nullptr, false) : json::object();
        if (document.is_object())
        {
            for (const auto& [name, value] : document.items())
            {
                if (value.is_boolean()) { known_[name] = *value.get_ptr<const bool*>(); }
            }
        }
        loaded_ = true;
    }
    const std::string key = key_of("firmware");
    if (known_.contains(key)) { co_return Done{}; }
    const int device = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (device < 0)
    {
        known_[key] = false; // not kept: the module may be loaded later
        co_return Done{};
    }
    close(device);
    auto works = co_await firmware_boots();
    if (!works) { co_return std::move(works).error(); }
    auto kept = co_await remember(key, *works);
    co_return kept;
}

Task<Result<AccelProbe::Choice>> AccelProbe::choose(std::string kernel)
{
    if (config_.accel == "tcg") { co_return Choice{Accel::tcg, "configured"}; }
    if (config_.accel == "kvm") { co_return Choice{Accel::kvm, "configured"}; }
    auto prepared = co_await prepare();
    if (!prepared) { co_return std::move(prepared).error(); }
    const auto firmware = known_.find(key_of("firmware"));
    if (firmware == known_.end() || !firmware->second) { co_return Choice{Accel::tcg, "kvm does not boot here"}; }
    auto guard = co_await lock_.lock();
    struct stat info{};
    if (stat(kernel.c_str(), &info) != 0) { co_return errno_error("read " + kernel, errno); }
    const std::string key = key_of(kernel + " " + std::to_string(info.st_size) + " " + std::to_string(info.st_mtim.tv_sec));
    const auto known = known_.find(key);
    bool works = known != known_.end() && known->second;
    if (known == known_.end())
    {
        auto probed = co_await kernel_boots(kernel);
        if (!probed) { co_return std::move(probed).error(); }
        works = *probed;
        auto kept = co_await remember(key, works);
        if (!kept) { co_return std::move(kept).error(); }
    }
    if (works) { co_return Choice{Accel::kvm, "probed"}; }
    co_return Choice{Accel::tcg, "kvm does not run this kernel"};
}

} // namespace dstack::vmm
