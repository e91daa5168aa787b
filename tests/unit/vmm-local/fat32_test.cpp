#include "services/vmm-local/fat32.hpp"
#include "tests/catch.hpp"
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <sys/stat.h>
#include <unistd.h>

using namespace dstack;
using namespace dstack::vmm;

namespace
{
std::pair<int, std::string> shell(const std::string& command)
{
    FILE* pipe = popen((command + " 2>&1").c_str(), "r");
    std::string out;
    std::array<char, 4096> buffer{};
    std::size_t n = 0;
    while ((n = fread(buffer.data(), 1, buffer.size(), pipe)) > 0) { out.append(buffer.data(), n); }
    return {pclose(pipe), out};
}
bool have(const char* tool) { return shell(std::string{"PATH=$PATH:/usr/sbin:/sbin command -v "} + tool).first == 0; }

struct TempFile
{
    std::string path;
    TempFile()
    {
        char name[] = "/tmp/fat32-test-XXXXXX";
        close(mkstemp(name));
        path = name;
    }
    TempFile(const TempFile&) = delete;
    TempFile& operator=(const TempFile&) = delete;
    ~TempFile() { unlink(path.c_str()); }
};
} // namespace

TEST_CASE("a host share is a FAT32 file system that other tools read, and takes hardly any space")
{
    const TempFile image;
    std::string large(300'000, '\0');
    for (std::size_t i = 0; i < large.size(); ++i) { large[i] = static_cast<char>('a' + i % 23); }
    const std::vector<ShareFile> files{{"app-compose.json", "{}"},
                                       {".sys-config.json", large},
                                       {".instance_info", R"({"app_id":"ab"})"},
                                       {".user-config", ""},
                                       {"exactly-13-ch", "x"},
                                       {std::string(255, 'n'), std::string(512, 'z')}};
    REQUIRE(write_fat32(image.path, share_label, share_size_bytes, files));
    struct stat info{};
    REQUIRE(stat(image.path.c_str(), &info) == 0);
    CHECK(static_cast<std::uint64_t>(info.st_size) == share_size_bytes);
    CHECK(info.st_blocks * 512 < 1024 * 1024);
    CHECK((info.st_mode & 0777) == 0600);
    if (have("fsck.vfat"))
    {
        const auto [code, text] = shell("PATH=$PATH:/usr/sbin:/sbin fsck.vfat -n -v " + image.path);
        INFO(text);
        CHECK(code == 0);
        CHECK(text.find("7 files") != std::string::npos); // six, and the root directory that it counts
    }
    if (have("mcopy"))
    {
        for (const auto& file : files)
        {
            CAPTURE(file.name);
            CHECK(shell("mtype -i " + image.path + " '::/" + file.name + "'").second == file.bytes);
        }
        CHECK(shell("mlabel -s -i " + image.path).second.find("DSTACKSHR") != std::string::npos);
    }
    if (have("blkid"))
    {
        const auto [code, text] = shell("PATH=$PATH:/usr/sbin:/sbin blkid -p " + image.path);
        CHECK(text.find("LABEL=\"DSTACKSHR\"") != std::string::npos);
        CHECK(text.find("TYPE=\"vfat\"") != std::string::npos);
    }
}

TEST_CASE("a share that cannot be made is refused")
{
    const TempFile image;
    CHECK(write_fat32("/no/such/dir/x", "L", share_size_bytes, {}).error().code == Errc::not_found);
    CHECK(write_fat32(image.path, "L", 1024 * 1024, {}).error().code == Errc::invalid_argument);
    CHECK(write_fat32(image.path, "L", share_size_bytes, {{"", ""}}).error().code == Errc::invalid_argument);
    CHECK(write_fat32(image.path, "L", 40ULL << 20, {{"big", std::string(60 << 20, 'x')}}).error().code == Errc::resource_exhausted);
    CHECK(write_fat32("/dev/full", "L", share_size_bytes, {}).error().code != Errc::internal);
}
