#include "shared/http/client.hpp"
#include "tests/catch.hpp"
TEST_CASE("placeholder") { CHECK(true); }
