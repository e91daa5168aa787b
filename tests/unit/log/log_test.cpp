#include "shared/log/log.hpp"
#include "tests/catch.hpp"

using dstack::log::Field;
using dstack::log::line;

TEST_CASE("a value is quoted only when it must be, and never carries a control byte")
{
    struct Row
    {
        std::string_view value;
        std::string_view shown;
    };
    const Row rows[] = {
        {"plain", "plain"},
        {"127.0.0.1:80", "127.0.0.1:80"},
        {"", "\"\""},
        {"two words", "\"two words\""},
        {"a=b", "\"a=b\""},
        {"say \"hi\"", "\"say \\\"hi\\\"\""},
        {"back\\slash", "\"back\\\\slash\""},
        {"a\nb", "\"a\\nb\""},
        {"\x1b[2Jgone", "\"\\x1b[2Jgone\""},
        {"tab\there", "\"tab\\x09here\""},
        {"del\x7f", "\"del\\x7f\""},
        {std::string_view{"nul\0x", 5}, "\"nul\\x00x\""},
        {"\xc2\x9bJ", "\"\\u009bJ\""},
        {"\xc2\xa7", "\xc2\xa7"},
        {"\xc2" "A", "\xc2" "A"},
        {"\xc2", "\xc2"},
        {"gr\xc3\xbc\xc3\x9f", "gr\xc3\xbc\xc3\x9f"},
    };
    for (const Row& row : rows)
    {
        CAPTURE(row.value);
        CHECK(line("said", {{"by", row.value}}) == "said by=" + std::string{row.shown});
    }
}

TEST_CASE("fields keep their order and their types")
{
    CHECK(line("nothing to add", {}) == "nothing to add");
    CHECK(line("started",
               {{"pid", 17}, {"ready", true}, {"late", false}, {"bytes", std::uint64_t{1} << 63}, {"name", "x"}}) ==
          "started pid=17 ready=true late=false bytes=9223372036854775808 name=x");
}
