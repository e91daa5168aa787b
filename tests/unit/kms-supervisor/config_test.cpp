#include "services/kms-supervisor/config.hpp"
#include "tests/catch.hpp"

using namespace dstack::kms_supervisor;

TEST_CASE("a configuration names what it starts, or only what it asks")
{
    struct Case
    {
        std::string toml;
        std::string_view error; ///< empty: accepted
    };
    const std::string local = "[kms]\nstate_dir = \"/s\"\nprogram = \"/p\"\nconfig = \"/c\"\n";
    const Case cases[] = {
        {local, ""},
        {"[kms]\nstate_dir = \"/s\"\nmode = \"external\"\nurl = \"https://kms:8000\"\n", ""},
        {"[kms]\nstate_dir = \"/s\"\n", "program"},
        {"[kms]\nstate_dir = \"/s\"\nprogram = \"/p\"\n", "config"},
        {"[kms]\nprogram = \"/p\"\nconfig = \"/c\"\n", "state_dir"},
        {local + "mode = \"cloud\"\n", "mode"},
        {local + "url = \"http://kms\"\n", "url"},
        {local + "[restart]\nbudget = -1\n", "budget"},
        {local + "[restart]\nbugdet = 1\n", "bugdet"},
    };
    for (const auto& c : cases)
    {
        INFO(c.toml);
        const auto config = parse_config(c.toml);
        CHECK(bool(config) == c.error.empty());
        if (!config) { CHECK(config.error().message.find(c.error) != std::string::npos); }
    }
}
