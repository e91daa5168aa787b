#include "bus/broker/calls.hpp"
#include "bus/broker/config.hpp"
#include "bus/broker/identity.hpp"
#include "bus/broker/journal.hpp"
#include "bus/schema/catalog.hpp"
#include "tests/catch.hpp"

using namespace dstack;
using namespace dstack::bus;
using schema::Role;

TEST_CASE("who a peer is follows from the kernel's facts and the rules")
{
    IdentityRules rules;
    rules.services = {{"auth", "user:dstack-auth"}, {"deployer", "exe:/opt/dstack-deployer"}};
    rules.viewer_group = "watchers";
    rules.admin_group = "wheel";
    struct Row
    {
        const char* what;
        PeerFacts facts;
        const char* user_id; ///< empty: refused
    };
    const Row rows[] = {
        {"a service by its user", {990, 990, 5, "dstack-auth", "/usr/libexec/dstack/dstack-auth", {}, false}, "990:990:5:none:auth"},
        {"a service's user keeps no operator's role", {990, 990, 5, "dstack-auth", "/bin/sh", {"dstack"}, false}, "990:990:5:none:auth"},
        {"a service by its executable", {0, 0, 6, "root", "/opt/dstack-deployer", {}, true}, "0:0:6:none:deployer"},
        {"the executable of another user is no proof", {1000, 1000, 6, "eve", "/opt/dstack-deployer", {}, false}, ""},
        {"root", {0, 0, 7, "root", "/bin/sh", {}, false}, "0:0:7:admin:"},
        {"the broker's own user", {1001, 1001, 8, "me", "/bin/sh", {}, true}, "1001:1001:8:admin:"},
        {"admin group", {1002, 1002, 9, "ann", "", {"users", "wheel"}, false}, "1002:1002:9:admin:"},
        {"operator group", {1003, 1003, 9, "bob", "", {"dstack"}, false}, "1003:1003:9:operator:"},
        {"viewer group", {1004, 1004, 9, "cyd", "", {"watchers"}, false}, "1004:1004:9:viewer:"},
        {"a stranger", {1005, 1005, 9, "eve", "", {"users"}, false}, ""},
        {"a uid without a name", {4242, 4242, 9, "", "", {}, false}, ""},
    };
    for (const Row& row : rows)
    {
        CAPTURE(row.what);
        auto identity = identify(row.facts, rules);
        CHECK((identity ? identity->user_id() : "") == row.user_id);
        if (identity)
        {
            auto back = Identity::from_user_id(identity->user_id());
            REQUIRE(back);
            CHECK(back->user_id() == identity->user_id());
        }
        else { CHECK(identity.error().code == Errc::permission_denied); }
    }
}

TEST_CASE("libzmq's address frame is read strictly")
{
    auto facts = parse_zap_address("localhost:1000:1001:77");
    REQUIRE(facts);
    CHECK(facts->uid == 1000);
    CHECK(facts->gid == 1001);
    CHECK(facts->pid == 77);
    for (const char* bad : {"", "localhost", "127.0.0.1:1:2:3", "localhost:1:2", "localhost:-1:2:3", "localhost:1:2:3:4", "localhost::2:3",
                            "localhost:4294967296:2:3"})
    {
        CAPTURE(bad);
        CHECK_FALSE(parse_zap_address(bad));
    }
}

TEST_CASE("the schema decides who may say and ask what")
{
    const auto operator_of = [](Role role) { return Identity{1000, 1000, 1, role, {}}; };
    const auto service = [](const char* name) { return Identity{990, 990, 1, Role::none, name}; };
    struct Row
    {
        Identity identity;
        const char* command;
        bool allowed;
    };
    const Row rows[] = {
        {operator_of(Role::viewer), "app.list", true},
        {operator_of(Role::viewer), "deploy.create", false},
        {operator_of(Role::operator_), "deploy.create", true},
        {operator_of(Role::operator_), "auth.allow_image", false},
        {operator_of(Role::admin), "auth.allow_image", true},
        {operator_of(Role::admin), "lease.bind", false}, // only its services
        {service("deployer"), "lease.bind", true},
        {service("deployer"), "lease.reserve", true},
        {service("logs"), "lease.reserve", false},
        {service("auth"), "deploy.create", false},
        {service("auth"), "bus.services", true},
    };
    for (const Row& row : rows)
    {
        CAPTURE(row.command, row.identity.user_id());
        const auto* command = schema::find_command(row.command);
        REQUIRE(command != nullptr);
        CHECK(static_cast<bool>(may_send(row.identity, *command)) == row.allowed);
    }
    const auto* granted = schema::find_event("lease.granted");
    REQUIRE(granted != nullptr);
    CHECK(may_publish(service("allocator"), *granted));
    CHECK_FALSE(may_publish(service("deployer"), *granted));
    CHECK_FALSE(may_publish(operator_of(Role::admin), *granted));
}

namespace
{
Call make_call(const char* route, const char* service, std::uint64_t deadline, const char* key = "")
{
    Call call;
    call.caller_route = route;
    call.service = service;
    call.deadline_ms = deadline;
    call.key = key;
    call.scope = "uid:0";
    return call;
}
} // namespace

TEST_CASE("calls are kept until they are taken, in order, and bounded")
{
    Calls calls;
    auto a = calls.add(make_call("r1", "auth", 300, "k"));
    auto b = calls.add(make_call("r1", "auth", 100));
    auto c = calls.add(make_call("r2", "logs", 200));
    REQUIRE((a && b && c));
    CHECK(calls.next_deadline() == 100);
    CHECK(calls.expired(99).empty());
    CHECK(calls.expired(200) == std::vector<std::uint64_t>{*b, *c});
    CHECK(calls.waiting_for("auth") == std::vector<std::uint64_t>{*a, *b});
    calls.find(*a)->delivered = true;
    CHECK(calls.waiting_for("auth") == std::vector<std::uint64_t>{*b});
    CHECK(calls.find_key("uid:0", "k")->delivery == *a);
    CHECK(calls.find_key("uid:1", "k") == nullptr);
    CHECK(calls.take(*a));
    CHECK_FALSE(calls.take(*a));
    CHECK(calls.find_key("uid:0", "k") == nullptr);
    CHECK(calls.size() == 2);
    for (std::size_t i = 0; i < Calls::max_per_route - 1; ++i) { REQUIRE(calls.add(make_call("r1", "auth", 100))); }
    auto refused = calls.add(make_call("r1", "auth", 100));
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == Errc::resource_exhausted);
    CHECK(calls.add(make_call("r3", "auth", 100))); // one caller's flood is not another's
}

TEST_CASE("configuration of the broker")
{
    auto config = parse_config("[bus]\ndirectory = \"/x\"\n[identity.services]\nauth = \"user:a\"\n");
    REQUIRE(config);
    CHECK(config->directory == "/x");
    CHECK(config->identity.services.at("auth") == "user:a");
    for (const char* bad : {"[bus]\ndirektory = \"/x\"\n", "[identity.services]\nauth = \"root\"\n", "[bus]\nmax_events = 1\n", "[bus\n"})
    {
        CAPTURE(bad);
        CHECK_FALSE(parse_config(bad));
    }
}
