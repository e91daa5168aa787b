#include "services/auth/chain/race.hpp"
#include "tests/catch.hpp"

using namespace dstack::auth::chain;
using namespace std::chrono_literals;

namespace
{
const Clock::time_point zero{1000h};

Answer says(bool allowed, std::string gateway = "gw")
{
    Answer out;
    out.allowed = allowed;
    out.gateway_app_id = std::move(gateway);
    return out;
}

Failure broken(Fault fault = Fault::server_error) { return {fault, "x", {}}; }

std::vector<std::size_t> starts(Race& race, Clock::time_point now)
{
    std::vector<std::size_t> out;
    while (const auto next = race.start(now)) { out.push_back(*next); }
    return out;
}
using List = std::vector<std::size_t>;
} // namespace

TEST_CASE("the first answer ends a question without a quorum")
{
    Race race{{2, 0, 1}, 1, 500ms};
    CHECK(starts(race, zero) == List{2});
    CHECK(race.next_start() == zero + 500ms);
    CHECK(starts(race, zero + 499ms).empty());
    race.answered(2, says(true));
    REQUIRE(race.over());
    CHECK(starts(race, zero + 10s).empty());
    CHECK_FALSE(race.next_start());
    CHECK(race.late(zero + 10s).empty());
    const Finding finding = race.take();
    CHECK(finding.kind == Finding::Kind::answered);
    REQUIRE(finding.answers.size() == 1);
    CHECK(finding.answers[0].endpoint == 2);
}

TEST_CASE("a silent endpoint is hedged after the delay, a failing one at once")
{
    Race race{{0, 1, 2}, 1, 500ms};
    CHECK(starts(race, zero) == List{0});
    CHECK(starts(race, zero + 500ms) == List{1});
    CHECK(race.next_start() == zero + 1000ms);
    race.failed(1, broken());
    CHECK(starts(race, zero + 600ms).empty()); // the first still runs: no need to hurry
    CHECK(starts(race, zero + 1000ms) == List{2});
    race.failed(0, broken());
    CHECK_FALSE(race.over());
    race.answered(2, says(false));
    REQUIRE(race.over());
    CHECK(race.take().kind == Finding::Kind::answered);

    Race quick{{0, 1}, 1, 500ms};
    CHECK(starts(quick, zero) == List{0});
    quick.failed(0, broken());
    CHECK(starts(quick, zero + 1ms) == List{1});
    quick.failed(1, broken());
    REQUIRE(quick.over());
    const Finding finding = quick.take();
    CHECK(finding.kind == Finding::Kind::unavailable);
    CHECK(finding.failures.size() == 2);
}

TEST_CASE("who is late")
{
    Race race{{0, 1, 2}, 1, 500ms};
    starts(race, zero);
    starts(race, zero + 500ms);
    starts(race, zero + 1000ms);
    CHECK(race.late(zero + 499ms).empty());
    CHECK(race.late(zero + 1200ms) == List{0, 1});
    race.answered(1, says(true));
    CHECK(race.late(zero + 1200ms) == List{0}); // 2 has only just been asked
}

TEST_CASE("a quorum")
{
    struct Row
    {
        std::string about;
        std::vector<std::pair<std::size_t, std::variant<Answer, Failure>>> comes;
        Finding::Kind kind;
        std::size_t answers;
    };
    const std::vector<Row> rows = {
        {"two agree", {{0, says(true)}, {1, says(true)}}, Finding::Kind::answered, 2},
        {"two deny, for whatever reason", {{0, says(false, "a")}, {1, says(false, "b")}}, Finding::Kind::answered, 2},
        {"one of each", {{0, says(true)}, {1, says(false)}}, Finding::Kind::disagreed, 2},
        {"a denial first", {{0, says(false)}, {1, says(true)}}, Finding::Kind::disagreed, 2},
        {"allowed through different gateways", {{0, says(true, "a")}, {1, says(true, "b")}}, Finding::Kind::disagreed, 2},
        {"a failure is replaced", {{0, broken()}, {1, says(true)}, {2, says(true)}}, Finding::Kind::answered, 2},
        {"only one is left", {{0, broken()}, {1, says(true)}, {2, broken()}}, Finding::Kind::unavailable, 1},
        {"none", {{0, broken()}, {1, broken()}, {2, broken()}}, Finding::Kind::unavailable, 0},
        {"the wrong chain ends it", {{0, broken(Fault::wrong_chain)}}, Finding::Kind::wrong_chain, 0},
        {"the wrong chain ends it, whatever was said before", {{0, says(true)}, {1, broken(Fault::wrong_chain)}}, Finding::Kind::wrong_chain, 1},
    };
    for (const Row& row : rows)
    {
        INFO(row.about);
        Race race{{0, 1, 2}, 2, 500ms};
        CHECK(starts(race, zero) == List{0, 1});
        for (const auto& [endpoint, what] : row.comes)
        {
            CHECK_FALSE(race.over());
            starts(race, zero + 1ms);
            if (const auto* answer = std::get_if<Answer>(&what)) { race.answered(endpoint, *answer); }
            else { race.failed(endpoint, std::get<Failure>(what)); }
        }
        REQUIRE(race.over());
        const Finding finding = race.take();
        CHECK(finding.kind == row.kind);
        CHECK(finding.answers.size() == row.answers);
    }
}

TEST_CASE("the deadline is a failure of those that still run")
{
    Race race{{0, 1, 2}, 2, 500ms};
    starts(race, zero);
    race.answered(0, says(true));
    race.expire();
    REQUIRE(race.over());
    const Finding finding = race.take();
    CHECK(finding.kind == Finding::Kind::unavailable);
    CHECK(finding.answers.size() == 1);
    REQUIRE(finding.failures.size() == 1);
    CHECK(finding.failures[0].endpoint == 1);
    CHECK(finding.failures[0].failure.fault == Fault::timeout);
    race.expire();
    race.answered(1, says(false)); // too late: nothing changes
    CHECK(race.over());
}

TEST_CASE("nobody may be asked")
{
    Race race{{}, 1, 500ms};
    CHECK(race.over());
    CHECK(starts(race, zero).empty());
    CHECK(race.take().kind == Finding::Kind::unavailable);
}

TEST_CASE("nobody speaks twice, and nobody unasked")
{
    Race race{{0, 1}, 2, 500ms};
    starts(race, zero);
    race.answered(0, says(true));
    race.answered(0, says(true));
    race.answered(7, says(true));
    race.failed(0, broken());
    CHECK_FALSE(race.over());
    race.answered(1, says(true));
    CHECK(race.over());
}
