#include "services/auth/policy_edit.hpp"
#include "services/auth/policy_file.hpp"
#include "tests/catch.hpp"
#include "tests/unit/auth/sample.hpp"
#include "tests/unit/state/scratch.hpp"
#include <filesystem>
#include <fstream>

using namespace dstack;
using namespace dstack::auth;

namespace
{

void put(const std::string& path, const std::string& text)
{
    std::ofstream{path, std::ios::binary | std::ios::trunc} << text;
}

Task<> look(PolicyFile& file, std::shared_ptr<const Snapshot>& out)
{
    auto snapshot = co_await file.current();
    out = std::move(snapshot);
}

Task<> allow(PolicyFile& file, std::string hash, std::optional<Result<PolicyFile::Changed>>& out)
{
    PolicyFile::Edit edit = [hash](std::string_view text) { return allow_app(text, sample::hex('1', 40), hash); };
    auto changed = co_await file.change(edit);
    out.emplace(std::move(changed));
}

Task<> allow_all(Loop& loop, PolicyFile& file, std::vector<std::optional<Result<PolicyFile::Changed>>>& out)
{
    Scope scope{loop};
    for (std::size_t i = 0; i < out.size(); ++i)
    {
        scope.spawn(allow(file, sample::hex("0123456789abcdef"[i]), out[i]));
    }
    co_await scope.drain();
}

} // namespace

TEST_CASE("the file is looked at anew when it is another one")
{
    Scratch scratch;
    const std::string path = scratch / "policy.json";
    Loop loop;
    PolicyFile file{loop, path};
    std::shared_ptr<const Snapshot> seen;
    const auto now = [&]
    {
        loop.run(look(file, seen));
        return seen;
    };
    CHECK_FALSE(now()->policy);
    CHECK(seen->error == "open " + path + ": no such file or directory");
    CHECK(seen->ground.policy_hash.empty());
    put(path, sample::policy());
    REQUIRE(now()->policy);
    CHECK(seen->policy->gateway_app_id == "gw");
    CHECK(seen->ground.policy_hash.size() == 64);
    const std::string hash = seen->ground.policy_hash;
    // the same size, at once
    std::string other = sample::policy();
    other.replace(other.find("\"gw\""), 4, "\"wg\"");
    put(path, other);
    REQUIRE(now()->policy);
    CHECK(seen->policy->gateway_app_id == "wg");
    CHECK(seen->ground.policy_hash != hash);
    put(path, "{");
    CHECK_FALSE(now()->policy);
    CHECK(seen->error.starts_with(path + ": no valid JSON at line 1"));
    std::filesystem::remove(path);
    CHECK_FALSE(now()->policy);
    std::filesystem::create_directory(path);
    CHECK_FALSE(now()->policy);
    CHECK(seen->error == path + ": is no regular file");
}

TEST_CASE("changes are made one after the other, and keep the file's mode")
{
    Scratch scratch;
    const std::string path = scratch / "policy.json";
    Loop loop;
    PolicyFile file{loop, path};
    std::vector<std::optional<Result<PolicyFile::Changed>>> none(1);
    loop.run(allow_all(loop, file, none));
    REQUIRE_FALSE(*none[0]);
    CHECK(none[0]->error().code == Errc::not_found);

    auto created = file.create(blank_policy());
    REQUIRE(created);
    CHECK(*created);
    auto again = file.create("other");
    REQUIRE(again);
    CHECK_FALSE(*again);
    std::filesystem::permissions(path, std::filesystem::perms{0600});

    std::vector<std::optional<Result<PolicyFile::Changed>>> answers(16);
    loop.run(allow_all(loop, file, answers));
    for (const auto& answer : answers)
    {
        REQUIRE(*answer);
        CHECK((*answer)->changed);
    }
    std::shared_ptr<const Snapshot> seen;
    loop.run(look(file, seen));
    REQUIRE(seen->policy);
    REQUIRE(seen->policy->apps.size() == 1);
    CHECK(seen->policy->apps.begin()->second.compose_hashes.values.size() == 16);
    CHECK(std::filesystem::status(path).permissions() == std::filesystem::perms{0600});
}
