#include "shared/base/time.hpp"
#include "tests/catch.hpp"
#include <string>
#include <utility>

using namespace dstack;

TEST_CASE("times are RFC 3339 in UTC with milliseconds, both ways")
{
    const std::pair<std::uint64_t, std::string> rows[] = {
        {0, "1970-01-01T00:00:00.000Z"},
        {951'782'400'001, "2000-02-29T00:00:00.001Z"},
        {1'700'000'000'123, "2023-11-14T22:13:20.123Z"},
        {4'102'444'799'999, "2099-12-31T23:59:59.999Z"},
    };
    for (const auto& [ms, text] : rows)
    {
        CHECK(rfc3339(ms) == text);
        CHECK(unix_ms_from_rfc3339(text) == ms);
    }
    for (const char* text : {"", "2023-11-14T22:13:20Z", "2023-13-14T22:13:20.123Z", "2023-02-29T22:13:20.123Z",
                             "2023-11-14 22:13:20.123Z", "2023-11-14T22:13:20.1x3Z", "1969-11-14T22:13:20.123Z"})
    {
        CAPTURE(text);
        CHECK_FALSE(unix_ms_from_rfc3339(text));
    }
}
