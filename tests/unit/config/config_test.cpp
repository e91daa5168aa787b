#include "shared/config/config.hpp"
#include "tests/catch.hpp"

using dstack::Errc;
using dstack::config::Document;

namespace
{

struct Sample
{
    std::string listen = "127.0.0.1";
    std::uint16_t port = 8001;
    bool create = false;
    std::chrono::milliseconds timeout{5000};
    std::vector<std::string> urls{"a"};
    std::string file;
    std::string mode = "user";
    std::map<std::string, std::string> labels;
    int depth = 1;
};

dstack::Result<Sample> read(std::string_view text)
{
    auto document = Document::parse(text);
    if (!document) { return std::move(document).error(); }
    Sample out;
    document->section("auth")
        .read("listen", out.listen)
        .read("port", out.port, 1, 1'000'000)
        .read("create", out.create)
        .read_ms("timeout_ms", out.timeout, 1, 60000)
        .read("urls", out.urls)
        .read_choice("mode", out.mode, {"user", "bridge"});
    document->section("auth.store").require("file", out.file);
    document->section("auth.labels").read_map(out.labels);
    document->section("").read("depth", out.depth, 0, 9);
    auto complete = document->finish();
    if (!complete) { return std::move(complete).error(); }
    return out;
}

constexpr std::string_view store = "[auth.store]\nfile = \"/x\"\n";

} // namespace

TEST_CASE("a full document is read")
{
    auto out = read(
        "depth = 3\n[auth]\nlisten = \"::1\"\nport = 65535\ncreate = true\ntimeout_ms = 250\nurls = [\"b\", \"c\"]\n"
        "mode = \"bridge\"\n[auth.store]\nfile = \"/x\"\n[auth.labels]\nzone = \"a\"\n\"odd key\" = \"b\"\n");
    REQUIRE(out);
    CHECK(out->listen == "::1");
    CHECK(out->port == 65535);
    CHECK(out->create);
    CHECK(out->timeout.count() == 250);
    CHECK(out->urls == std::vector<std::string>{"b", "c"});
    CHECK(out->file == "/x");
    CHECK(out->mode == "bridge");
    CHECK(out->labels == std::map<std::string, std::string>{{"odd key", "b"}, {"zone", "a"}});
    CHECK(out->depth == 3);
}

TEST_CASE("what is absent keeps its default")
{
    auto out = read(store);
    REQUIRE(out);
    CHECK(out->listen == "127.0.0.1");
    CHECK(out->port == 8001);
    CHECK(out->urls == std::vector<std::string>{"a"});
    CHECK(out->labels.empty());
}

TEST_CASE("mistakes are named with their place")
{
    struct Row
    {
        const char* text;
        const char* message;
    };
    const Row rows[] = {
        {"\n[auth]\nprot = 1\n",
         "line 3, column 1: auth.prot: unknown key; known keys: create, listen, mode, port, timeout_ms, urls"},
        {"depht = 1\n", "line 1, column 1: depht: unknown key; known keys: depth"},
        {"[auth]\n[oath]\nport = 1\n",
         "line 2, column 2: oath: unknown section; known sections: auth, auth.labels, auth.store"},
        {"[auth.stroe]\nfile = \"/y\"\n",
         "line 1, column 7: auth.stroe: unknown section; known sections: auth, auth.labels, auth.store"},
        {"[auth]\nlabels = 3\n", "line 2, column 10: auth.labels: must be a table, not an integer"},
        {"[auth]\nport = 0\n", "line 2, column 8: auth.port: must be an integer in 1..65535, not 0"},
        {"[auth]\nport = 65536\n", "line 2, column 8: auth.port: must be an integer in 1..65535, not 65536"},
        {"[auth]\nport = 80.5\n",
         "line 2, column 8: auth.port: must be an integer in 1..65535, not a floating-point number"},
        {"[auth]\nport = \"80\"\n", "line 2, column 8: auth.port: must be an integer in 1..65535, not a string"},
        {"[auth]\nlisten = 1\n", "line 2, column 10: auth.listen: must be a string, not an integer"},
        {"[auth]\nlisten = \"a\\u0000b\"\n", "line 2, column 10: auth.listen: must not contain a zero byte"},
        {"[auth]\ncreate = 1\n", "line 2, column 10: auth.create: must be true or false, not an integer"},
        {"[auth]\ntimeout_ms = 60001\n",
         "line 2, column 14: auth.timeout_ms: must be an integer in 1..60000, not 60001"},
        {"[auth]\nurls = \"a\"\n", "line 2, column 8: auth.urls: must be an array of strings, not a string"},
        {"[auth]\nurls = [\"a\", 2]\n", "line 2, column 14: auth.urls: must hold only strings, not an integer"},
        {"[auth]\nmode = \"nat\"\n", "line 2, column 8: auth.mode: must be one of user, bridge"},
        {"[auth.labels]\nzone = 1\n", "line 2, column 8: auth.labels.zone: must be a string, not an integer"},
        // two mistakes: the first one in the file is reported, whatever the order of reading
        {"[auth.labels]\nzone = 1\n[auth]\nport = 0\n",
         "line 2, column 8: auth.labels.zone: must be a string, not an integer"},
    };
    for (const Row& row : rows)
    {
        CAPTURE(row.text);
        auto out = read(std::string{row.text} + std::string{store});
        REQUIRE_FALSE(out);
        CHECK(out.error().code == Errc::invalid_argument);
        CHECK(out.error().message == row.message);
    }
}

TEST_CASE("a required key must be there and not empty")
{
    auto absent = read("[auth]\nport = 1\n");
    REQUIRE_FALSE(absent);
    CHECK(absent.error().message == "line 1, column 1: auth.store.file: must be given");
    auto in_section = read("\n[auth.store]\n");
    REQUIRE_FALSE(in_section);
    CHECK(in_section.error().message == "line 2, column 1: auth.store.file: must be given");
    auto mistyped = read("[auth.store]\nfiel = \"/x\"\n");
    REQUIRE_FALSE(mistyped);
    CHECK(mistyped.error().message == "line 2, column 1: auth.store.fiel: unknown key; known keys: file");
    auto empty = read("[auth.store]\nfile = \"\"\n");
    REQUIRE_FALSE(empty);
    CHECK(empty.error().message == "line 2, column 8: auth.store.file: must not be empty");
}

TEST_CASE("text that is no TOML is refused with its place")
{
    const char* rows[] = {"[auth\n", "a = \n", "a = 1\na = 2\n", "\xff\xfe", "[[auth]]\n[auth]\n"};
    for (const char* text : rows)
    {
        CAPTURE(text);
        auto document = Document::parse(text);
        REQUIRE_FALSE(document);
        CHECK(document.error().message.starts_with("line "));
        CHECK(document.error().message.find("no valid TOML") != std::string::npos);
    }
}

TEST_CASE("tables under a name can be listed")
{
    auto document = Document::parse("[peers.b]\nurl = \"1\"\n[peers.a]\nurl = \"2\"\n[peers]\nx = 1\n");
    REQUIRE(document);
    CHECK(document->tables_in("peers") == std::vector<std::string>{"a", "b"});
    std::string url;
    document->section("peers.a").read("url", url);
    CHECK(url == "2");
    auto complete = document->finish();
    REQUIRE_FALSE(complete);
    CHECK(complete.error().message.find("peers.b: unknown section") != std::string::npos);
}
