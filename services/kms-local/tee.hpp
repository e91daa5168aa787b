#pragma once
#include <optional>
#include <string>

namespace dstack::kms
{

/// What says that this machine is, or hosts, real confidential VMs: "/dev/sev", or
/// "/sys/module/kvm_intel/parameters/tdx is Y". `root` is put before every path ("" on a real system).
std::optional<std::string> find_tee(const std::string& root);

} // namespace dstack::kms
