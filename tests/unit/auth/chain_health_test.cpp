#include "services/auth/chain/health.hpp"
#include "tests/catch.hpp"

using namespace dstack::auth::chain;
using namespace std::chrono_literals;

namespace
{
const Clock::time_point zero{1000h};

EndpointHealth failing(Fault fault, std::optional<std::chrono::seconds> retry_after = {}, unsigned times = 1)
{
    EndpointHealth out;
    for (unsigned i = 0; i < times; ++i) { note_failure(out, {fault, "x", retry_after}, zero, 0.999); }
    return out;
}
} // namespace

TEST_CASE("rests double up to a minute, are spread, and end with an answer")
{
    EndpointHealth health;
    const std::chrono::milliseconds whole[] = {1s, 2s, 4s, 8s, 16s, 32s, 60s, 60s};
    for (const auto rest : whole)
    {
        note_failure(health, {Fault::server_error, {}, {}}, zero, 0.0);
        CHECK(health.rest_until == zero + rest / 2);
        EndpointHealth other = health;
        other.failures -= 1;
        other.rest_until = {};
        note_failure(other, {Fault::server_error, {}, {}}, zero, 0.999);
        CHECK(other.rest_until > zero + rest * 9 / 10);
        CHECK(other.rest_until <= zero + rest);
    }
    CHECK(resting(health, zero));
    note_answer(health, zero);
    CHECK_FALSE(resting(health, zero));
    CHECK(health.failures == 0);
    CHECK(health.answers == 1);
    CHECK(health.failed == 8);
    for (unsigned i = 0; i < 100'000; ++i) { note_failure(health, {Fault::timeout, {}, {}}, zero, 0.5); } // no overflow
    CHECK(health.rest_until <= zero + 60s);
}

TEST_CASE("what makes an endpoint rest, and what forbids to ask it")
{
    struct Row
    {
        Fault fault;
        std::optional<std::chrono::seconds> retry_after;
        bool rests;
        bool forbids;
    };
    const Row rows[] = {
        {Fault::rate_limited, {}, true, true},    {Fault::rate_limited, 20s, true, true}, {Fault::server_error, {}, true, false},
        {Fault::server_error, 20s, true, true},   {Fault::refused, {}, true, false},      {Fault::redirected, {}, true, false},
        {Fault::unreachable, {}, true, false},    {Fault::tls, {}, true, false},          {Fault::timeout, {}, true, false},
        {Fault::slow, {}, true, false},           {Fault::stale, {}, true, false},        {Fault::wrong_chain, {}, true, false},
        {Fault::too_large, {}, false, false},     {Fault::malformed, {}, false, false},   {Fault::rpc_error, {}, false, false},
        {Fault::no_contract, {}, false, false},
    };
    for (const Row& row : rows)
    {
        INFO(to_string(row.fault));
        const EndpointHealth health = failing(row.fault, row.retry_after);
        CHECK(resting(health, zero) == row.rests);
        CHECK(askable(health, zero) == !row.forbids);
        if (row.retry_after) { CHECK(resting(health, zero + *row.retry_after - 1ms)); }
        CHECK_FALSE(resting(health, zero + 60s));
        CHECK(health.last->fault == row.fault);
    }
}

TEST_CASE("a late failure does not shorten the rest that was asked for")
{
    EndpointHealth health = failing(Fault::rate_limited, 30s);
    note_failure(health, {Fault::timeout, {}, {}}, zero + 1s, 0.0);
    CHECK(health.rest_until == zero + 30s);
    CHECK_FALSE(askable(health, zero + 29s));
    note_failure(health, {Fault::rate_limited, {}, 1s}, zero + 2s, 0.0);
    CHECK_FALSE(askable(health, zero + 29s));
    note_failure(health, {Fault::rate_limited, {}, 60s}, zero + 3s, 0.0);
    CHECK_FALSE(askable(health, zero + 62s));
    CHECK(askable(health, zero + 63s));
}

TEST_CASE("whom to ask first")
{
    const EndpointHealth well;
    const EndpointHealth tired = failing(Fault::timeout);
    const EndpointHealth very_tired = failing(Fault::timeout, {}, 4);
    const EndpointHealth forbidden = failing(Fault::rate_limited, 10s);
    const EndpointHealth odd = failing(Fault::malformed);
    struct Row
    {
        std::vector<EndpointHealth> endpoints;
        std::chrono::milliseconds later;
        std::vector<std::size_t> order;
    };
    const Row rows[] = {
        {{well, well, well}, 0s, {0, 1, 2}},
        {{tired, well, well}, 0s, {1, 2, 0}},
        {{tired, well, well}, 1s, {0, 1, 2}},
        {{forbidden, well}, 0s, {1}},
        {{forbidden, well}, 10s, {0, 1}},
        {{forbidden, forbidden}, 9s, {}},
        {{very_tired, tired}, 0s, {1, 0}},
        {{odd, well}, 0s, {0, 1}},
        {{forbidden, very_tired, tired, well}, 0s, {3, 2, 1}},
        {{}, 0s, {}},
    };
    for (const Row& row : rows) { CHECK(order_of(row.endpoints, zero + row.later) == row.order); }
}

TEST_CASE("the state in words")
{
    CHECK(describe(EndpointHealth{}, zero) == "not asked yet");
    EndpointHealth well;
    note_answer(well, zero);
    CHECK(describe(well, zero) == "ok");
    CHECK(describe(failing(Fault::rate_limited, 12s), zero) == "rpc_rate_limited (x), not asked again for 12 s");
    CHECK(describe(failing(Fault::timeout), zero) == "rpc_timeout (x), asked again in 1 s");
    CHECK(describe(failing(Fault::timeout), zero + 1h) == "rpc_timeout (x)");
    CHECK(describe(failing(Fault::malformed), zero) == "rpc_malformed (x)");
}
