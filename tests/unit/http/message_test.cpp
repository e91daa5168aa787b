#include "shared/http/message.hpp"
#include "tests/catch.hpp"

using namespace dstack;

TEST_CASE("fields are found in any case, and lists by token")
{
    http::Headers headers{{"Content-Type", "a/b"}, {"Connection", "Upgrade , keep-alive"}, {"connection", "TE"}};
    CHECK(headers.get("content-TYPE") == "a/b");
    CHECK(headers.find("x") == nullptr);
    CHECK(headers.get("x").empty());
    CHECK(headers.has_token("CONNECTION", "Keep-Alive"));
    CHECK(headers.has_token("connection", "te"));
    CHECK_FALSE(headers.has_token("connection", "alive"));
    headers.set("Connection", "close");
    CHECK(headers.size() == 2);
    CHECK(headers.get("connection") == "close");
}

TEST_CASE("targets are split and decoded")
{
    struct Case
    {
        std::string target;
        std::string path;
        std::string query;
        std::optional<std::string> lines;
    };
    const Case cases[] = {
        {"/logs/a?lines=3", "/logs/a", "lines=3", "3"},
        {"/logs/a", "/logs/a", "", std::nullopt},
        {"/?lines", "/", "lines", ""},
        {"/?xlines=1&lines=a%20b+c&lines=2", "/", "xlines=1&lines=a%20b+c&lines=2", "a b c"},
        {"/?%6cines=%zz%4", "/", "%6cines=%zz%4", "%zz%4"},
        {"/?lines=a?b", "/", "lines=a?b", "a?b"},
    };
    for (const Case& c : cases)
    {
        http::Request request;
        request.target = c.target;
        INFO(c.target);
        CHECK(request.path() == c.path);
        CHECK(request.query() == c.query);
        CHECK(request.query_value("lines") == c.lines);
    }
}

TEST_CASE("percent encoding is undone by decoding")
{
    std::string all;
    for (int c = 0; c < 256; ++c) { all.push_back(static_cast<char>(c)); }
    CHECK(http::percent_decode(http::percent_encode(all)) == all);
    CHECK(http::percent_encode("a/b c~") == "a%2Fb%20c~");
}
