#include "services/auth/policy.hpp"
#include "services/auth/policy_edit.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include "tests/catch.hpp"
#include "tests/unit/auth/sample.hpp"
#include <nlohmann/json.hpp>

using namespace dstack::auth;
using nlohmann::json;
using sample::hex;

TEST_CASE("a new app is allowed on any device; again changes nothing")
{
    auto first = allow_app(blank_policy(), hex('7', 40), "0x" + hex('A'));
    REQUIRE(first);
    REQUIRE(*first);
    CHECK(parse_policy(**first));
    CHECK(json::parse(**first)["apps"] ==
          json{{hex('7', 40), {{"composeHashes", {hex('a')}}, {"devices", json::array()}, {"allowAnyDevice", true}}}});
    auto again = allow_app(**first, "0x" + hex('7', 40), hex('a'));
    REQUIRE(again);
    CHECK_FALSE(*again);
}

TEST_CASE("a change keeps what it does not touch")
{
    auto changed = allow_app(sample::policy(), hex('1', 40), hex('5'));
    REQUIRE(changed);
    REQUIRE(*changed);
    json expected = json::parse(sample::policy());
    expected["apps"][hex('1', 40)]["composeHashes"].push_back(hex('5'));
    CHECK(json::parse(**changed) == expected);

    auto other_spelling =
        allow_app(R"({"apps":{"0x)" + hex('A', 40) + R"(":{"composeHashes":["0x)" + hex('B') + R"("]}}})", hex('a', 40),
                  hex('b'));
    REQUIRE(other_spelling);
    CHECK_FALSE(*other_spelling);
}

TEST_CASE("an open list needs no entry")
{
    auto image = allow_image(R"({"osImages":{"any":true}})", hex('1'));
    REQUIRE(image);
    CHECK_FALSE(*image);
    auto closed = allow_image(R"({"osImages":{"any":false}})", hex('1'));
    REQUIRE(closed);
    REQUIRE(*closed);
    CHECK(json::parse(**closed) == json{{"osImages", {hex('1')}}});
}

TEST_CASE("a hash or a whole app can be taken back")
{
    auto two = allow_app(sample::policy(), hex('1', 40), hex('5'));
    REQUIRE((two && *two));
    auto one = revoke_app(**two, hex('1', 40), hex('d'));
    REQUIRE((one && *one));
    CHECK(json::parse(**one)["apps"][hex('1', 40)]["composeHashes"] == json{hex('5')});
    auto again = revoke_app(**one, hex('1', 40), hex('d'));
    REQUIRE(again);
    CHECK_FALSE(*again);
    auto none = revoke_app(**one, hex('1', 40), hex('5'));
    REQUIRE((none && *none));
    CHECK(json::parse(**none)["apps"] == json::object());
    const std::string listed = R"({"apps":{")" + hex('1', 40) + R"(":{"composeHashes":[")" + hex('d') +
                               R"("],"devices":[")" + hex('e') + R"("]}}})";
    auto kept = revoke_app(listed, hex('1', 40), hex('d'));
    REQUIRE((kept && *kept));
    CHECK(json::parse(**kept)["apps"][hex('1', 40)] == json{{"composeHashes", json::array()}, {"devices", {hex('e')}}});
    auto all = revoke_app(**two, hex('1', 40), "");
    REQUIRE((all && *all));
    CHECK(json::parse(**all)["apps"] == json::object());
    auto stranger = revoke_app(**two, hex('2', 40), "");
    REQUIRE(stranger);
    CHECK_FALSE(*stranger);
    auto open =
        revoke_app(R"({"apps":{")" + hex('1', 40) + R"(":{"composeHashes":{"any":true}}}})", hex('1', 40), hex('d'));
    REQUIRE_FALSE(open);
    CHECK(open.error().code == dstack::Errc::failed_precondition);
}

TEST_CASE("bad hashes and damaged documents are refused")
{
    using dstack::Errc;
    auto short_id = allow_app(blank_policy(), "12", hex('a'));
    REQUIRE_FALSE(short_id);
    CHECK(short_id.error().code == Errc::invalid_argument);
    CHECK(short_id.error().message == "app_id: must be 40 hex digits, has 2");
    auto short_hash = allow_app(blank_policy(), hex('1', 40), hex('a', 62));
    REQUIRE_FALSE(short_hash);
    CHECK(short_hash.error().message == "compose_hash: must be 64 hex digits, has 62");
    auto empty_hash = allow_app(blank_policy(), hex('1', 40), "");
    REQUIRE_FALSE(empty_hash);
    for (const char* text : {"", "{", R"({"osImages":[1]})", R"({"apps":{"x":{}}})", R"({"apps":{},"apps":{}})"})
    {
        auto damaged = allow_image(text, hex('1'));
        REQUIRE_FALSE(damaged);
        CHECK(damaged.error().code == Errc::failed_precondition);
        CHECK(damaged.error().message.starts_with("the policy file is not valid: "));
    }
}

TEST_CASE("an entry with an end is an object; the longer one stays")
{
    constexpr std::uint64_t end = 1767225600000; // 2026-01-01T00:00:00Z
    auto timed = allow_app(sample::policy(), hex('1', 40), hex('5'), {end, "a try"});
    REQUIRE((timed && *timed));
    json expected = json::parse(sample::policy());
    expected["apps"][hex('1', 40)]["composeHashes"].push_back(
        json{{"value", hex('5')}, {"expires", "2026-01-01T00:00:00.000Z"}, {"reason", "a try"}});
    CHECK(json::parse(**timed) == expected);
    auto parsed = parse_policy(**timed);
    REQUIRE(parsed);

    auto again = allow_app(**timed, hex('1', 40), "0x" + hex('5'), {end, "another reason"});
    REQUIRE(again);
    CHECK_FALSE(*again);
    auto shorter = allow_app(**timed, hex('1', 40), hex('5'), {end - 1000, ""});
    REQUIRE(shorter);
    CHECK_FALSE(*shorter);
    auto longer = allow_app(**timed, hex('1', 40), hex('5'), {end + 1000, ""});
    REQUIRE((longer && *longer));
    CHECK(json::parse(**longer)["apps"][hex('1', 40)]["composeHashes"] ==
          json::array({hex('D'), json{{"value", hex('5')}, {"expires", "2026-01-01T00:00:01.000Z"}}}));
    auto forever = allow_app(**longer, hex('1', 40), hex('5'));
    REQUIRE((forever && *forever));
    CHECK(json::parse(**forever)["apps"][hex('1', 40)]["composeHashes"] == json::array({hex('D'), hex('5')}));
    auto permanent = allow_app(**forever, hex('1', 40), hex('5'), {end, ""});
    REQUIRE(permanent);
    CHECK_FALSE(*permanent);
    auto revoked = revoke_app(**longer, hex('1', 40), hex('5'));
    REQUIRE((revoked && *revoked));
    CHECK(json::parse(**revoked)["apps"][hex('1', 40)]["composeHashes"] == json::array({hex('D')}));

    CHECK_FALSE(allow_app(sample::policy(), hex('1', 40), hex('5'), {end, "a\nb"}));
    const auto any = allow_image(R"({"osImages":{"any":true,"expires":"2026-01-01T00:00:00Z"}})", hex('1'));
    REQUIRE_FALSE(any);
    CHECK(any.error().code == dstack::Errc::failed_precondition);
    auto covered = allow_image(R"({"osImages":{"any":true,"expires":"2026-01-01T00:00:00Z"}})", hex('1'), {end - 1, ""});
    REQUIRE(covered);
    CHECK_FALSE(*covered);
    auto image = allow_image("{}", hex('1'), {end, ""});
    REQUIRE((image && *image));
    auto gone = revoke_image(**image, hex('1'));
    REQUIRE((gone && *gone));
    CHECK(json::parse(**gone) == json{{"osImages", json::array()}});
    auto absent = revoke_image(**gone, hex('1'));
    REQUIRE(absent);
    CHECK_FALSE(*absent);
}

TEST_CASE("a whole document replaces exactly the one that was read")
{
    const std::string now = sample::policy();
    const std::string hash = dstack::crypto::to_hex(dstack::crypto::sha256(now));
    auto set = set_policy(now, "{}", hash);
    REQUIRE((set && *set));
    CHECK(**set == "{}");
    CHECK(set_policy(now, "{}", ""));
    auto same = set_policy(now, now, hex('0'));
    REQUIRE(same); // said twice, it is done once: the hash is of the text before
    CHECK_FALSE(*same);
    auto other = set_policy(now, "{}", hex('0'));
    REQUIRE_FALSE(other);
    CHECK(other.error().code == dstack::Errc::aborted);
    auto wrong = set_policy(now, "{\"osImage\":[]}", hash);
    REQUIRE_FALSE(wrong);
    CHECK(wrong.error().code == dstack::Errc::invalid_argument);
    CHECK_FALSE(set_policy(now, "{}", "abc"));
    CHECK(set_policy("{ not valid", "{}", ""));
}
