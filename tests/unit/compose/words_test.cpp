#include "shared/compose/image_reference.hpp"
#include "shared/compose/words.hpp"
#include "tests/catch.hpp"

using namespace dstack::compose;
using Words = std::vector<std::string>;

TEST_CASE("command lines split as in a shell")
{
    struct Row
    {
        std::string_view line;
        Words words;
    };
    const Row rows[] = {
        {"", {}},
        {"  ", {}},
        {"httpd -f", {"httpd", "-f"}},
        {"sh -c 'echo \"hi\" $x'", {"sh", "-c", "echo \"hi\" $x"}},
        {"a\\ b \"c\\\"d\" \"e\\f\"", {"a b", "c\"d", "e\\f"}},
        {"'' x", {"", "x"}},
        {"a'b'\"c\"", {"abc"}},
        {"one\n two", {"one", "two"}},
    };
    for (const Row& row : rows)
    {
        INFO(row.line);
        const auto words = split_words(row.line);
        REQUIRE(words);
        CHECK(*words == row.words);
    }
    CHECK_FALSE(split_words("'open"));
    CHECK_FALSE(split_words("end\\"));
}

TEST_CASE("variables are replaced, and never by nothing")
{
    const Variables variables{{"A", "1"}, {"EMPTY", ""}};
    struct Row
    {
        std::string_view text, out;
    };
    const Row rows[] = {
        {"x$A-${A}", "x1-1"}, {"$$A", "$A"},         {"${B:-b}", "b"}, {"${B-}", ""},  {"${EMPTY:-b}", "b"},
        {"${EMPTY-b}", ""},   {"${A:?needed}", "1"}, {"no", "no"},     {"$A$A", "11"},
    };
    for (const Row& row : rows)
    {
        INFO(row.text);
        const auto out = interpolate(row.text, variables);
        REQUIRE(out);
        CHECK(*out == row.out);
    }
    for (const std::string_view text : {"$B", "${B}", "${", "$", "$1", "${A+x}", "${}", "${B:?needed}", "cost: $ 5"})
    {
        INFO(text);
        CHECK_FALSE(interpolate(text, variables));
    }
}

TEST_CASE("image names have one full form")
{
    const std::string digest = "sha256:" + std::string(64, 'a');
    const std::pair<std::string, std::string> rows[] = {
        {"busybox", "docker.io/library/busybox:latest"},
        {"busybox:1.36", "docker.io/library/busybox:1.36"},
        {"docker.io/library/busybox", "docker.io/library/busybox:latest"},
        {"team/app", "docker.io/team/app:latest"},
        {"localhost/app:x", "localhost/app:x"},
        {"r.example:5000/a/b", "r.example:5000/a/b:latest"},
        {"busybox@" + digest, "docker.io/library/busybox@" + digest},
        {"r.example/a:1@" + digest, "r.example/a:1@" + digest},
    };
    for (const auto& [given, full] : rows)
    {
        INFO(given);
        const auto out = normalize_image(given);
        REQUIRE(out);
        CHECK(*out == full);
    }
    for (const std::string_view bad :
         {"", "Upper", "a//b", "a:", "a@sha256:12", "../x", "a b", "-a", "a:b:c/d", "a/../b", "@"})
    {
        INFO(bad);
        CHECK_FALSE(normalize_image(bad));
    }
}
