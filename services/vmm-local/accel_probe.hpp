#pragma once
#include "services/vmm-local/config.hpp"
#include "services/vmm-local/qemu_args.hpp"
#include "shared/runtime/scope.hpp"
#include <map>
#include <optional>

namespace dstack::vmm
{

/// Whether KVM really runs guests here. An openable /dev/kvm proves nothing: on some hosts the firmware runs thousands of
/// times too slowly and kernels die. So a boot sector that reports over the debug port is booted, and then the guest's own
/// kernel up to its "no root file system" panic; both with a deadline. The results are kept in the state directory for
/// this host kernel, this QEMU and this guest kernel.
class AccelProbe
{
  public:
    AccelProbe(Loop& loop, const Config& config);

    /// QEMU's version ("7.2.22") and the first probe; once per process, more calls wait for the first.
    Task<Result<Done>> prepare();
    const std::string& qemu_version() const { return version_; }
    /// Which accelerator to start this kernel with; `why` says how that is known.
    struct Choice
    {
        Accel accel = Accel::tcg;
        std::string why;
    };
    Task<Result<Choice>> choose(std::string kernel);

  private:
    Task<Result<Done>> read_version();
    Task<Result<bool>> firmware_boots();
    Task<Result<bool>> kernel_boots(std::string kernel);
    Task<Result<Done>> remember(std::string key, bool works);
    std::string key_of(std::string_view what) const;

    Loop& loop_;
    const Config& config_;
    AsyncMutex lock_;
    std::string version_;
    std::map<std::string, bool> known_;
    bool loaded_ = false;
};

} // namespace dstack::vmm
