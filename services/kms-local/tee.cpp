#include "services/kms-local/tee.hpp"
#include <fstream>
#include <sys/stat.h>

namespace dstack::kms
{

namespace
{

constexpr const char* devices[] = {"/dev/tdx_guest", "/dev/tdx-guest", "/dev/sev-guest", "/dev/sev",
                                   "/sys/firmware/tdx"};
/// Module parameters that read Y or 1 when the host can start such VMs.
constexpr const char* switches[] = {"/sys/module/kvm_intel/parameters/tdx", "/sys/module/kvm_amd/parameters/sev_snp",
                                    "/sys/module/kvm_amd/parameters/sev_es", "/sys/module/kvm_amd/parameters/sev"};

} // namespace

std::optional<std::string> find_tee(const std::string& root)
{
    for (const auto* device : devices)
    {
        struct stat info
        {
        };
        if (::stat((root + device).c_str(), &info) == 0) { return device; }
    }
    for (const auto* parameter : switches)
    {
        std::ifstream file{root + parameter};
        const auto first = file.get();
        if (first == 'Y' || first == 'y' || first == '1')
        {
            return std::string{parameter} + " is " + static_cast<char>(first);
        }
    }
    return {};
}

} // namespace dstack::kms
