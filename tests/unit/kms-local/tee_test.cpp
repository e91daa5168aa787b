#include "services/kms-local/tee.hpp"
#include "tests/catch.hpp"
#include <filesystem>
#include <fstream>
#include <unistd.h>

using namespace dstack::kms;
namespace fs = std::filesystem;

namespace
{
/// A directory that stands for the machine's root.
class Machine
{
  public:
    Machine()
    {
        std::string pattern = (fs::temp_directory_path() / "dstack-tee-XXXXXX").string();
        REQUIRE(::mkdtemp(pattern.data()) != nullptr);
        root_ = pattern;
    }
    Machine(const Machine&) = delete;
    Machine& operator=(const Machine&) = delete;
    ~Machine() { fs::remove_all(root_); }
    void put(const std::string& path, const std::string& content) const
    {
        fs::create_directories(fs::path{root_ + path}.parent_path());
        std::ofstream{root_ + path} << content;
    }
    const std::string& root() const { return root_; }

  private:
    std::string root_;
};
} // namespace

TEST_CASE("a machine with a TEE is recognised, one without is not")
{
    struct Case
    {
        std::string path, content, found; ///< found empty: no TEE
    };
    const Case cases[] = {
        {"/dev/tdx_guest", "", "/dev/tdx_guest"},
        {"/dev/sev-guest", "", "/dev/sev-guest"},
        {"/dev/sev", "", "/dev/sev"},
        {"/dev/kvm", "", ""},
        {"/sys/module/kvm_intel/parameters/tdx", "Y\n", "/sys/module/kvm_intel/parameters/tdx is Y"},
        {"/sys/module/kvm_intel/parameters/tdx", "N\n", ""},
        {"/sys/module/kvm_amd/parameters/sev_snp", "1\n", "/sys/module/kvm_amd/parameters/sev_snp is 1"},
        {"/sys/module/kvm_amd/parameters/sev", "0\n", ""},
        {"/sys/module/kvm_amd/parameters/sev", "", ""},
    };
    for (const auto& c : cases)
    {
        INFO(c.path << ' ' << c.content);
        const Machine machine;
        machine.put(c.path, c.content);
        CHECK(find_tee(machine.root()).value_or("") == c.found);
    }
}
