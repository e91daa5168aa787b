#include "shared/crypto/hex.hpp"
#include "tests/catch.hpp"

using namespace dstack;
using namespace dstack::crypto;

TEST_CASE("hex is written in lower case without a prefix")
{
    const Bytes bytes = {0x00, 0x0f, 0xA5, 0xff};
    CHECK(to_hex(bytes) == "000fa5ff");
    CHECK(to_hex({}).empty());
}

TEST_CASE("hex is read in any case with one optional prefix, and nothing else")
{
    struct Case
    {
        std::string_view input;
        bool good;
        std::string_view expected; ///< canonical hex, or a part of the error
    };
    const Case cases[] = {
        {"", true, ""},
        {"0x", true, ""},
        {"00Ff", true, "00ff"},
        {"0x00fF", true, "00ff"},
        {"0XAB", true, "ab"},
        {"0", false, "odd number of digits (1)"},
        {"0x123", false, "odd number of digits (3)"},
        {"0x0x12", false, "not a hex digit at position 3"},
        {"1g", false, "position 1"},
        {" 12 ", false, "position 0"},
        {"12\n4", false, "position 2"},
    };
    for (const auto& c : cases)
    {
        INFO(c.input);
        const auto got = from_hex(c.input);
        REQUIRE(bool(got) == c.good);
        if (c.good) { CHECK(to_hex(*got) == c.expected); }
        else { CHECK(got.error().message.find(c.expected) != std::string::npos); }
    }
}

TEST_CASE("hex of a fixed size is never padded or cut")
{
    CHECK(from_hex_fixed<2>("0xbeef"));
    for (const auto* bad : {"", "be", "bee", "beefbe", "0x00bee"})
    {
        INFO(bad);
        CHECK_FALSE(from_hex_fixed<2>(bad));
    }
    CHECK(from_hex("be", 2).error().message == "expected 2 bytes (4 hex digits), got 2 digits");
}

TEST_CASE("base64 follows RFC 4648 section 10 and refuses what is not canonical")
{
    const std::pair<std::string_view, std::string_view> vectors[] = {{"", ""},
                                                                     {"f", "Zg=="},
                                                                     {"fo", "Zm8="},
                                                                     {"foo", "Zm9v"},
                                                                     {"foob", "Zm9vYg=="},
                                                                     {"fooba", "Zm9vYmE="},
                                                                     {"foobar", "Zm9vYmFy"}};
    for (const auto& [plain, encoded] : vectors)
    {
        CHECK(to_base64(view(plain)) == encoded);
        const auto decoded = from_base64(encoded);
        REQUIRE(decoded);
        CHECK(text(*decoded) == plain);
    }
    for (const auto* bad : {"Zg", "Zg=", "Zh==", "Zm9v\n", " Zm9", "Z===", "====", "Zm=v", "Zm9\x80"})
    {
        INFO(bad);
        CHECK_FALSE(from_base64(bad));
    }
}

TEST_CASE("secrets are compared by length and content")
{
    CHECK(constant_time_equal(view("abc"), view("abc")));
    CHECK_FALSE(constant_time_equal(view("abc"), view("abd")));
    CHECK_FALSE(constant_time_equal(view("abc"), view("ab")));
    CHECK(constant_time_equal({}, {}));
}

TEST_CASE("random bytes differ")
{
    CHECK(random_fixed<32>() != random_fixed<32>());
    CHECK(random_bytes(7).size() == 7);
}
