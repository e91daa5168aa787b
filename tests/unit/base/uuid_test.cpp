#include "shared/base/uuid.hpp"
#include "tests/catch.hpp"
#include <regex>
#include <set>

TEST_CASE("uuid_v7 has the form of RFC 9562, is unique and ascends")
{
    const std::regex form{"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"};
    std::set<std::string> seen;
    std::string before;
    for (int i = 0; i < 1000; ++i)
    {
        const std::string id = dstack::uuid_v7();
        CHECK(std::regex_match(id, form));
        CHECK(seen.insert(id).second);
        CHECK(id.substr(0, 18) >= before.substr(0, 18)); // the time; behind it is randomness
        before = id;
    }
}
