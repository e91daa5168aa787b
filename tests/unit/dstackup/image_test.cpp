#include "services/dstackup/image/oci.hpp"
#include "services/dstackup/image/tar.hpp"
#include "services/dstackup/image/unpack.hpp"
#include "tests/catch.hpp"
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <zstd.h>

using namespace dstack;
using namespace dstack::image;
namespace fs = std::filesystem;

namespace
{
/// Gives its bytes in small pieces, as a pipe does.
class TextSource : public Source
{
  public:
    explicit TextSource(std::string text) : text_(std::move(text)) {}
    Result<std::size_t> read(std::span<char> out) override
    {
        const auto n = std::min({out.size(), text_.size() - at_, std::size_t{1000}});
        std::memcpy(out.data(), text_.data() + at_, n);
        at_ += n;
        return n;
    }

  private:
    std::string text_;
    std::size_t at_ = 0;
};

std::string member(const std::string& name, char type, const std::string& data = {}, const std::string& target = {})
{
    std::array<char, 512> h{};
    std::memcpy(h.data(), name.data(), std::min<std::size_t>(name.size(), 100));
    std::snprintf(h.data() + 100, 8, "%07o", type == '5' ? 0755U : 0644U);
    std::snprintf(h.data() + 108, 8, "%07o", 0U);
    std::snprintf(h.data() + 116, 8, "%07o", 0U);
    std::snprintf(h.data() + 124, 12, "%011zo", data.size());
    std::snprintf(h.data() + 136, 12, "%011o", 1700000000U);
    h[156] = type;
    std::memcpy(h.data() + 157, target.data(), std::min<std::size_t>(target.size(), 100));
    std::memcpy(h.data() + 257, "ustar\00000", 8);
    std::memset(h.data() + 148, ' ', 8);
    unsigned sum = 0;
    for (const char c : h) { sum += static_cast<unsigned char>(c); }
    std::snprintf(h.data() + 148, 8, "%06o", sum);
    std::string out{h.data(), h.size()};
    out += data;
    out.append((512 - data.size() % 512) % 512, '\0');
    return out;
}

std::string archive(const std::vector<std::string>& members)
{
    std::string out;
    for (const auto& one : members) { out += one; }
    return out + std::string(1024, '\0');
}

struct Folder
{
    fs::path path;
    Folder()
    {
        std::string name = (fs::temp_directory_path() / "image_test.XXXXXX").string();
        REQUIRE(mkdtemp(name.data()) != nullptr);
        path = name;
        fs::create_directory(path / "root");
        std::ofstream{path / "secret"} << "outside";
    }
    ~Folder() { fs::remove_all(path); }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    std::string text(const std::string& name) const
    {
        std::ifstream in{path / name};
        std::ostringstream out;
        out << in.rdbuf();
        return out.str();
    }
    Result<Done> apply(const std::vector<std::string>& layers, Limits limits = {}) const
    {
        auto unpacker = Unpacker::open((path / "root").string(), limits);
        REQUIRE(unpacker);
        for (const auto& layer : layers)
        {
            TextSource source{layer};
            auto applied = unpacker->apply(source);
            if (!applied) { return applied; }
        }
        return Done{};
    }
};

Result<std::vector<Entry>> read_all(std::string text)
{
    TextSource source{std::move(text)};
    TarReader tar{source};
    std::vector<Entry> out;
    while (true)
    {
        auto entry = tar.next();
        if (!entry) { return std::move(entry).error(); }
        if (!*entry) { return out; }
        out.push_back(**entry);
    }
}
} // namespace

TEST_CASE("tar members with long names, by GNU and by pax")
{
    const std::string long_name = std::string(150, 'd') + "/" + std::string(150, 'f');
    const std::string record = " path=" + long_name + "\n";
    const auto pax = std::to_string(record.size() + 3) + record;
    const auto entries = read_all(
        archive({member("a", '0', "hello"), member("././@LongLink", 'L', long_name + '\0'), member("cut", '0', "x"),
                 member("pax", 'x', pax), member("cut", '5'), member("l", '2', "", "a")}));
    REQUIRE(entries);
    REQUIRE(entries->size() == 4);
    CHECK((*entries)[0].name == "a");
    CHECK((*entries)[0].size == 5);
    CHECK((*entries)[0].mtime == 1700000000);
    CHECK((*entries)[1].name == long_name);
    CHECK((*entries)[2].name == long_name);
    CHECK((*entries)[2].kind == Entry::Kind::directory);
    CHECK((*entries)[3].target == "a");
}

TEST_CASE("what is no tar archive is said to be none")
{
    auto damaged = archive({member("a", '0', "hello")});
    damaged[3] = 'x';
    for (const auto& text : {std::string(1024, 'x'), damaged, member("a", '0', "hello").substr(0, 514),
                             std::string(100, '\0'), member("p", 'x', "999999 path=x\n") + member("a", '0')})
    {
        const auto entries = read_all(text);
        REQUIRE_FALSE(entries);
        CHECK(entries.error().code == Errc::data_loss);
    }
    CHECK(read_all(""));
}

TEST_CASE("names that lead out are refused, absolute ones are taken below the root")
{
    CHECK(*safe_parts("./a//b/") == std::vector<std::string>{"a", "b"});
    CHECK(*safe_parts("/etc/passwd") == std::vector<std::string>{"etc", "passwd"});
    CHECK(safe_parts(".")->empty());
    for (const auto* name : {"..", "a/../b", "../x", "a/.."}) { CHECK_FALSE(safe_parts(name)); }
    CHECK_FALSE(safe_parts(std::string(300, 'x')));
}

TEST_CASE("layers build on each other and whiteouts remove")
{
    const Folder at;
    const auto lower = archive({member("etc/", '5'), member("etc/a", '0', "1"), member("etc/b", '0', "2"),
                                member("opt/deep/x", '0', "3"), member("opt/y", '0', "4"),
                                member("bin", '2', "", "usr/bin"), member("usr/bin/", '5')});
    const auto upper =
        archive({member("etc/.wh.a", '0'), member("opt/new", '0', "5"), member("opt/.wh..wh..opq", '0'),
                 member("bin/sh", '0', "sh"), member("bin/ash", '1', "", "usr/bin/sh"), member("etc/b", '0', "22")});
    REQUIRE(at.apply({lower, upper}));
    CHECK_FALSE(fs::exists(at.path / "root/etc/a"));
    CHECK(at.text("root/etc/b") == "22");
    CHECK_FALSE(fs::exists(at.path / "root/opt/deep"));
    CHECK_FALSE(fs::exists(at.path / "root/opt/y"));
    CHECK(at.text("root/opt/new") == "5");
    CHECK(at.text("root/usr/bin/sh") == "sh");
    CHECK(fs::hard_link_count(at.path / "root/usr/bin/sh") == 2);
}

TEST_CASE("nothing outside of the root is reached")
{
    struct Row
    {
        const char* what;
        std::vector<std::string> members;
        bool refused;
    };
    const Folder* current = nullptr;
    for (const auto& row :
         {Row{"..", {member("../secret", '0', "changed")}, true},
          Row{"symlink up", {member("l", '2', "", "../"), member("l/secret", '0', "changed")}, false},
          Row{"absolute symlink", {member("l", '2', "", "/"), member("l/secret", '0', "changed")}, false},
          Row{"write through a link", {member("l", '2', "", "../secret"), member("l", '0', "changed")}, false},
          Row{"hard link out", {member("l", '1', "", "../secret")}, true},
          Row{"whiteout of ..", {member("a/.wh...", '0')}, true},
          Row{"whiteout through a link", {member("l", '2', "", ".."), member("l/.wh.secret", '0')}, false}})
    {
        CAPTURE(row.what);
        const Folder at;
        current = &at;
        CHECK(static_cast<bool>(at.apply({archive(row.members)})) == !row.refused);
        CHECK(at.text("secret") == "outside");
    }
    CHECK(current != nullptr);
}

TEST_CASE("an image that is too large is refused")
{
    const Folder at;
    const auto large = at.apply({archive({member("a", '0', std::string(2000, 'x'))})}, Limits{1000, 10});
    REQUIRE_FALSE(large);
    CHECK(large.error().code == Errc::resource_exhausted);
    CHECK_FALSE(at.apply({archive({member("a", '5'), member("b", '5'), member("c", '5')})}, Limits{1000, 2}));
}

TEST_CASE("compressed layers are known from their first bytes")
{
    const std::string text(5000, 'z');
    std::string packed(ZSTD_compressBound(text.size()), '\0');
    packed.resize(ZSTD_compress(packed.data(), packed.size(), text.data(), text.size(), 1));
    for (const auto& bytes : {text, packed, packed + packed})
    {
        TextSource raw{bytes};
        auto plain = decompress(raw);
        REQUIRE(plain);
        std::string out(text.size(), '\0');
        const auto got = read_full(**plain, out);
        REQUIRE(got);
        CHECK(out == text);
    }
    TextSource cut{packed.substr(0, packed.size() - 4)};
    auto plain = decompress(cut);
    REQUIRE(plain);
    std::string out(text.size() + 1, '\0');
    CHECK_FALSE(read_full(**plain, out));
    TextSource nothing{""};
    CHECK(decompress(nothing));
}

TEST_CASE("image names as container tools read them")
{
    CHECK(normalize_reference("busybox") == "docker.io/library/busybox:latest");
    CHECK(normalize_reference("me/app:1") == "docker.io/me/app:1");
    CHECK(normalize_reference("localhost/x") == "localhost/x:latest");
    CHECK(normalize_reference("ghcr.io/a/b:v2") == "ghcr.io/a/b:v2");
    CHECK(normalize_reference("r:5000/a") == "r:5000/a:latest");
    CHECK(normalize_reference("a@sha256:00") == "docker.io/library/a@sha256:00");
    CHECK(folder_of("docker.io/library/busybox:latest") == "docker.io_library_busybox_latest-de68ccc3");
    CHECK(check_reference("busybox:1.36"));
    for (const auto* name : {"", "a b", "a\nb", "a;b"}) { CHECK_FALSE(check_reference(name)); }
}

TEST_CASE("image documents from strangers")
{
    const std::string digest = "sha256:" + std::string(64, 'a');
    CHECK(parse_index(R"({"manifests":[{"digest":")" + digest + R"("}]})"));
    for (const auto& text :
         {std::string{"[]"}, std::string{"{}"}, std::string{R"({"manifests":[{"digest":"sha256:../../etc"}]})"},
          std::string{R"({"manifests":[{"digest":"md5:aa"}]})"}, std::string{R"({"manifests":[7]})"}, std::string{"{"}})
    {
        CAPTURE(text);
        CHECK_FALSE(parse_index(text));
    }
    CHECK_FALSE(parse_manifest("{}"));
    CHECK_FALSE(parse_manifest(R"({"manifests":[]})"));
    const auto config = parse_run_config(
        R"({"config":{"Entrypoint":null,"Cmd":["sh"],"Env":["A=b"],"WorkingDir":""},"rootfs":{"diff_ids":[]}})");
    REQUIRE(config);
    CHECK(config->cmd == std::vector<std::string>{"sh"});
    CHECK(config->workdir == "/");
    CHECK_FALSE(parse_run_config(R"({"config":{"Cmd":[1]}})"));
    CHECK_FALSE(parse_docker_manifest("[]"));
    CHECK(parse_docker_manifest(R"([{"Config":"a.json","RepoTags":null,"Layers":["b.tar"]}])"));

    StoredImage image{"r", "d", *config, {}};
    const auto back = parse_stored_image(encode(image));
    REQUIRE(back);
    CHECK(back->config.cmd == config->cmd);
    CHECK_FALSE(parse_stored_image(R"({"format":2,"reference":"r","config":{}})"));
}
