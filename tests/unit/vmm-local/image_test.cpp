#include "services/vmm-local/image.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include "tests/catch.hpp"
#include <cstdlib>
#include <filesystem>
#include <fstream>

using namespace dstack;
using namespace dstack::vmm;
namespace fs = std::filesystem;

namespace
{
struct ImageDir
{
    fs::path root;
    fs::path image;
    ImageDir()
    {
        char name[] = "/tmp/image-test-XXXXXX";
        root = mkdtemp(name);
        image = root / "dstack-dev-0.6.0";
        fs::create_directory(image);
        put("bzImage", "kernel");
        put("initramfs.cpio.gz", "initrd");
        put("rootfs.img.verity", "rootfs");
        put("metadata.json", R"({"kernel":"bzImage","initrd":"initramfs.cpio.gz","rootfs":"rootfs.img.verity",
            "cmdline":"console=ttyS0","version":"0.6.0","is_dev":true,"git_revision":"x"})");
        seal();
    }
    ImageDir(const ImageDir&) = delete;
    ImageDir& operator=(const ImageDir&) = delete;
    ~ImageDir()
    {
        std::error_code ignored;
        fs::remove_all(root, ignored);
    }
    void put(const std::string& file, const std::string& text) { std::ofstream{image / file} << text; }
    std::string get(const std::string& file)
    {
        std::ifstream in{image / file};
        return std::string{std::istreambuf_iterator<char>{in}, {}};
    }
    void seal()
    {
        std::string sums;
        for (const char* file : {"bzImage", "initramfs.cpio.gz", "metadata.json"})
        {
            sums += crypto::to_hex(crypto::sha256(get(file))) + "  " + file + "\n";
        }
        sums += std::string(64, '0') + "  measurement.tdx.cbor\n"; // listed, not there
        put("sha256sum.txt", sums);
        put("digest.txt", crypto::to_hex(crypto::sha256(sums)) + "\n");
    }
    std::string refusal()
    {
        const auto loaded = load_image(root.string(), "dstack-dev-0.6.0");
        return loaded ? "" : loaded.error().message;
    }
};
} // namespace

TEST_CASE("an image loads with all that a start needs")
{
    ImageDir dir;
    const auto image = load_image(dir.root.string(), "dstack-dev-0.6.0");
    REQUIRE(image);
    CHECK(image->kernel == (dir.image / "bzImage").string());
    CHECK(image->rootfs == (dir.image / "rootfs.img.verity").string());
    CHECK(image->cmdline == "console=ttyS0");
    CHECK(image->is_dev);
    CHECK_FALSE(image->shared_ro);
    CHECK(image->os_image_hash.size() == 64);
    const auto all = list_images(dir.root.string());
    REQUIRE(all);
    CHECK(all->size() == 1);
    CHECK(list_images("/no/such/dir").error().message == "Failed to read image directory");
}

TEST_CASE("what is wrong with an image is said")
{
    CHECK(load_image("/tmp", "a/b").error().message == "Invalid image name");
    CHECK(load_image("/tmp", "..").error().message == "Invalid image name");
    CHECK(load_image("/tmp", std::string(65, 'a')).error().message == "Invalid image name");
    CHECK(load_image("/tmp", "").error().message.rfind("Failed to load image: ", 0) == 0);
    CHECK(load_image("/tmp", "no-such-image").error().code == Errc::not_found);

    ImageDir dir;
    const std::string path = dir.image.string();
    fs::remove(dir.image / "bzImage");
    CHECK(dir.refusal() == "Failed to load image: Kernel does not exist: " + path + "/bzImage");
    fs::create_symlink("/etc/hostname", dir.image / "bzImage");
    CHECK(dir.refusal() == "Failed to load image: Kernel escapes image directory: " + path + "/bzImage");
    fs::remove(dir.image / "bzImage");
    fs::create_directory(dir.image / "bzImage");
    CHECK(dir.refusal() == "Failed to load image: Kernel is not a file: " + path + "/bzImage");
    dir.put("metadata.json", R"({"kernel":"initramfs.cpio.gz","initrd":"initramfs.cpio.gz","rootfs":"x.ext4"})");
    dir.put("x.ext4", "");
    CHECK(dir.refusal() == "Failed to load image: Unsupported rootfs type: ext4");
    dir.put("metadata.json", R"({"initrd":"initramfs.cpio.gz"})");
    CHECK(dir.refusal() == "Failed to load image: missing field `kernel` in metadata.json");
    dir.put("metadata.json", "no json");
    CHECK(dir.refusal().find("is no JSON object") != std::string::npos);
    fs::remove(dir.image / "metadata.json");
    CHECK(dir.refusal().find("cannot read") != std::string::npos);
}

TEST_CASE("versions are three plain numbers")
{
    CHECK(parse_version("0.6.0.1") == Version{0, 6, 0});
    CHECK(parse_version("0.5.6-rc1") == Version{});
    CHECK(parse_version("") == Version{});
    CHECK(parse_version("1.2") == Version{});
    CHECK(parse_version("1.65536.0") == Version{});
    ImageDir dir;
    dir.put("metadata.json", R"({"kernel":"bzImage","initrd":"initramfs.cpio.gz"})");
    CHECK(load_image(dir.root.string(), "dstack-dev-0.6.0")->version == "0.6.0");
}

TEST_CASE("a damaged image is refused, also when it was good before")
{
    ImageDir dir;
    ImageDigests digests;
    const auto check = [&]
    {
        const auto image = load_image(dir.root.string(), "dstack-dev-0.6.0");
        REQUIRE(image);
        const auto verified = digests.verify(*image);
        return verified ? std::string{} : verified.error().message;
    };
    CHECK(check().empty());
    CHECK(check().empty()); // from memory
    dir.put("bzImage", "kernek");
    CHECK(check() == "Failed to load image: dstack-dev-0.6.0 is damaged: bzImage does not have the checksum of sha256sum.txt");
    dir.put("bzImage", "kernel");
    CHECK(check().empty());
    dir.put("digest.txt", std::string(64, 'a'));
    CHECK(check() == "Failed to load image: dstack-dev-0.6.0 is damaged: digest.txt is not the hash of sha256sum.txt");
    dir.put("digest.txt", "not hex");
    CHECK(check().empty()); // no digest: an empty hash, which no policy allows
    CHECK(load_image(dir.root.string(), "dstack-dev-0.6.0")->os_image_hash.empty());
    dir.put("sha256sum.txt", "garbage\n");
    CHECK(check().find("no checksum") != std::string::npos);
}
