#include "services/logs/sources.hpp"
#include "tests/catch.hpp"

using namespace dstack;
using namespace dstack::logs;

namespace
{
SourceInfo vm(std::string id, std::string name, std::string app_id, bool removed, std::uint64_t created)
{
    return {SourceInfo::Kind::vm, std::move(id), std::move(name), std::move(app_id), "/v", removed, created};
}
SourceInfo service(std::string id) { return {SourceInfo::Kind::service, id, id, "", "/l", false, 0}; }
} // namespace

TEST_CASE("what an operator writes finds the source that is meant")
{
    const std::vector<SourceInfo> sources = {
        vm("11111111-aaaa", "hello", "abc", true, 5), vm("22222222-aaaa", "hello", "abc", false, 3), vm("33333333-aaaa", "gone", "def", true, 1),
        vm("44444444-aaaa", "gone", "def", true, 2),  service("auth"),                                vm("55555555-aaaa", "auth", "x", false, 9),
        vm("11111111-bbbb", "other", "y", false, 9),
    };
    struct Case
    {
        std::string wanted;
        int index; ///< -1: not found; -2: not clear
    };
    const Case cases[] = {
        {"11111111-aaaa", 0}, {"hello", 1}, {"abc", 1}, {"gone", 3}, {"def", 3}, {"auth", 5}, {"service:auth", 4}, {"vm:auth", 5},
        {"22222222", 1}, {"2222222", -1}, {"11111111", -2}, {"11111111-b", 6}, {"", -1}, {"nope", -1}, {"service:hello", -1}, {"vm:", -1},
    };
    for (const Case& c : cases)
    {
        INFO(c.wanted);
        const auto got = resolve(sources, c.wanted);
        if (c.index >= 0)
        {
            REQUIRE(got);
            CHECK(*got == static_cast<std::size_t>(c.index));
        }
        else
        {
            REQUIRE_FALSE(got);
            CHECK(got.error().code == (c.index == -1 ? Errc::not_found : Errc::invalid_argument));
            CHECK_FALSE(got.error().hint.empty());
        }
    }
}

TEST_CASE("what is known of a source is read back")
{
    const SourceInfo info = vm("1-a", "n\"\n", "app", true, 77);
    const auto read = decode_source(encode(info));
    REQUIRE(read);
    CHECK(*read == info);
    CHECK(directory_name(*read) == "vm-1-a");
    for (const char* bad : {"", "[]", "{}", R"({"kind":"vm","id":"../x"})", R"({"kind":"x","id":"a"})", R"({"kind":1,"id":2})"})
    {
        INFO(bad);
        CHECK_FALSE(decode_source(bad));
    }
}
