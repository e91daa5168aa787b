#include "shared/compose/yaml.hpp"
#include "tests/catch.hpp"
#include <chrono>

using namespace dstack::compose;

namespace
{

std::string refusal(std::string_view text)
{
    const auto root = parse_yaml(text);
    return root ? std::string{"accepted"} : root.error().message;
}

} // namespace

TEST_CASE("scalars keep their text, quotes and line")
{
    const auto root = parse_yaml("a: 0x10\nb: 'null'\nc: null\nd:\ne: \"x\\ty\"\nf: |\n  one\n  two\n");
    REQUIRE(root);
    CHECK(root->find("a")->text == "0x10");
    CHECK(root->find("b")->kind == Yaml::Kind::scalar);
    CHECK(root->find("c")->kind == Yaml::Kind::null);
    CHECK(root->find("d")->kind == Yaml::Kind::null);
    CHECK(root->find("e")->text == "x\ty");
    CHECK(root->find("e")->line == 5);
    CHECK(root->find("f")->text == "one\ntwo\n");
    CHECK(root->find("g") == nullptr);
}

TEST_CASE("merge keys: own keys win, then the earlier source")
{
    const auto root = parse_yaml("a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc:\n  <<: [*a, *b]\n  x: 3\n");
    REQUIRE(root);
    const Yaml* merged = root->find("c");
    CHECK(merged->find("x")->text == "3");
    CHECK(merged->find("y")->text == "1");
    CHECK(merged->find("z")->text == "2");
}

TEST_CASE("what is no single, plain, finite document is refused")
{
    struct Row
    {
        std::string_view text, message;
    };
    const Row rows[] = {
        {"a: 1\na: 2\n", "line 2: the key a is there twice"},
        {"a: &x [*x]\n", "line 1: the alias *x refers to itself"},
        {"a: *nobody\n", "line 1: the alias *nobody names no anchor before it"},
        {"a: 1\n---\nb: 2\n", "line 1: a second document begins here: a compose file is one document"},
        {"a: !!binary aGk=\n", "line 1: the tag tag:yaml.org,2002:binary is not supported"},
        {"? [a]\n: b\n", "line 1: a key must be a plain word"},
        {"a: \"x\\0y\"\n", "line 1: a value contains a NUL byte"},
        {"<<: 3\n", "line 1: << must be a mapping or a list of mappings"},
    };
    for (const Row& row : rows)
    {
        INFO(row.text);
        CHECK(refusal(row.text) == row.message);
    }
    for (const std::string_view text :
         {"a: [1, 2\nb: 3\n", "a: 'x\n", "a:\n\t- b\n", "{", "a: b: c\n", "%YAML 9.9\n---\na\n", "\xff\xfe:x"})
    {
        INFO(text);
        const std::string message = refusal(text);
        CHECK(message.find("not valid YAML") != std::string::npos);
        CHECK(message.starts_with("line "));
    }
}

TEST_CASE("bombs are refused before they are expanded")
{
    std::string aliases = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n";
    for (int i = 1; i < 30; ++i)
    {
        const std::string name = "a" + std::to_string(i), below = "*a" + std::to_string(i - 1);
        aliases += name + ": &" + name + " [" + below;
        for (int n = 0; n < 8; ++n) { aliases += "," + below; }
        aliases += "]\n";
    }
    std::string text_bomb = "a: &a '" + std::string(100'000, 'x') + "'\nb: [";
    for (int i = 0; i < 1000; ++i) { text_bomb += "*a,"; }
    std::string chain = "a0: &a0 [x]\n"; // each alias nests one level deeper
    for (int i = 1; i < 200; ++i)
    {
        chain += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [*a" + std::to_string(i - 1) + "]\n";
    }
    std::string many_keys;
    for (int i = 0; i < 30'000; ++i) { many_keys += "k" + std::to_string(i) + ":\n"; }
    const std::string deep(100'000, '[');
    const auto begin = std::chrono::steady_clock::now();
    CHECK(refusal(aliases).find("once aliases are copied") != std::string::npos);
    CHECK(refusal(text_bomb + "]\n").find("once aliases are copied") != std::string::npos);
    CHECK(refusal(chain).find("nested deeper than 48 levels") != std::string::npos);
    CHECK(refusal(many_keys).find("more than 10000 values") != std::string::npos);
    CHECK(refusal(deep).find("line 1: ") == 0);
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds{5});
}
