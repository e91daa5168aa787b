#include "services/allocator/plan.hpp"
#include "tests/catch.hpp"
#include <map>
#include <set>

using namespace dstack;
using namespace dstack::allocator;

namespace
{

Resource port(std::uint32_t number, const char* address = "127.0.0.1", const char* protocol = "tcp")
{
    auto wish = make_wish(0, "port", protocol, address, number, "");
    REQUIRE(wish);
    return wish->resource;
}
Resource cid(std::uint32_t number) { return Resource{Kind::cid, {}, {}, number}; }
Wish wish(Resource resource) { return {std::move(resource), "80/tcp of the guest"}; }

class FakeHost : public HostFacts
{
  public:
    Result<std::optional<std::string>> holder(const Resource& resource) override
    {
        asked.push_back(resource.text());
        if (resource.address && resource.address->text() == "192.0.2.1")
        {
            return Error{Errc::failed_precondition, resource.text() + ": this host has no such address", {}, {}};
        }
        for (const auto& [taken, by] : sockets)
        {
            if (taken.conflicts(resource)) { return std::optional{by}; }
        }
        return std::optional<std::string>{};
    }
    bool is_ephemeral(std::uint16_t number) override { return number >= ephemeral_first && number <= ephemeral_last; }

    std::vector<std::pair<Resource, std::string>> sockets;
    std::uint16_t ephemeral_first = 32768;
    std::uint16_t ephemeral_last = 60999;
    std::vector<std::string> asked;
};

const Ranges ranges{1000, 1003, 18000, 18003};

} // namespace

TEST_CASE("addresses overlap as sockets do")
{
    struct Row
    {
        const char* a;
        const char* b;
        bool overlap;
    };
    const Row rows[] = {
        {"127.0.0.1", "127.0.0.1", true},
        {"127.0.0.1", "127.0.0.2", false},
        {"0.0.0.0", "127.0.0.1", true},
        {"0.0.0.0", "0.0.0.0", true},
        {"::", "127.0.0.1", true},
        {"::", "0.0.0.0", true},
        {"::", "::1", true},
        {"0.0.0.0", "::1", false},
        {"::1", "127.0.0.1", false},
        {"::1", "::2", false},
        {"::ffff:127.0.0.1", "127.0.0.1", true},
    };
    for (const Row& row : rows)
    {
        CAPTURE(row.a, row.b);
        const auto a = Address::parse(row.a);
        const auto b = Address::parse(row.b);
        REQUIRE((a && b));
        CHECK(a->overlaps(*b) == row.overlap);
        CHECK(b->overlaps(*a) == row.overlap);
    }
    for (const char* text : {"", "localhost", "127.0.0.1:80", "1.2.3", "::g", "*"})
    {
        CHECK_FALSE(Address::parse(text));
    }
    CHECK(Address::parse("0:0::1")->text() == "::1");
}

TEST_CASE("wishes are checked")
{
    struct Row
    {
        const char* kind;
        const char* protocol;
        const char* address;
        std::uint32_t value;
        const char* purpose;
        const char* message;
    };
    const Row rows[] = {
        {"vsock", "", "", 0, "", "wishes[3].kind: must be cid, port or vsock_port"},
        {"port", "sctp", "", 0, "", "wishes[3].protocol: must be tcp or udp"},
        {"port", "tcp", "localhost", 0, "", "wishes[3].address: must be an IPv4 or IPv6 address"},
        {"port", "tcp", "", 65536, "", "wishes[3].value: must be a port in 1..65535"},
        {"cid", "", "", 2, "", "wishes[3].value: must be a CID in 3..4294967294"},
        {"cid", "", "", 0xffffffff, "", "wishes[3].value: must be a CID in 3..4294967294"},
        {"cid", "tcp", "", 5, "", "wishes[3].protocol: a cid has neither protocol nor address"},
        {"port", "", "", 80, "\x1b[2J", "wishes[3].purpose: must be at most 200 printable ASCII characters"},
    };
    for (const Row& row : rows)
    {
        CAPTURE(row.message);
        auto made = make_wish(3, row.kind, row.protocol, row.address, row.value, row.purpose);
        REQUIRE_FALSE(made);
        CHECK(made.error().code == Errc::invalid_argument);
        CHECK(made.error().message == row.message);
    }
    auto usual = make_wish(0, "port", "", "", 0, "web");
    REQUIRE(usual);
    CHECK(usual->resource.text() == "tcp 127.0.0.1:any");
    CHECK(port(80, "::1", "udp").text() == "udp [::1]:80");
}

TEST_CASE("a named wish gets that one, or a refusal that names the holder")
{
    const std::vector<Held> held{
        {port(8080), "hello", "80/tcp of the guest"}, {port(9000, "0.0.0.0"), "wide", ""}, {cid(1000), "vm-1", ""}};
    struct Row
    {
        Resource wanted;
        std::string message; // empty: granted
    };
    FakeHost host;
    host.sockets = {{port(443, "::"), "nginx, pid 812"}, {port(53, "127.0.0.1", "udp"), "dnsmasq, pid 7"}};
    const Row rows[] = {
        {port(8081), ""},
        {port(8080), "tcp 127.0.0.1:8080 is taken: leased to hello (80/tcp of the guest)"},
        {port(8080, "0.0.0.0"), "tcp 0.0.0.0:8080 is taken: leased to hello (80/tcp of the guest)"},
        {port(8080, "127.0.0.1", "udp"), ""},
        {port(8080, "127.0.0.2"), ""},
        {port(9000, "10.0.0.1"), "tcp 10.0.0.1:9000 is taken: leased to wide"},
        {port(443), "tcp 127.0.0.1:443 is taken: nginx, pid 812"},
        {port(53, "127.0.0.1", "udp"), "udp 127.0.0.1:53 is taken: dnsmasq, pid 7"},
        {port(53), ""},
        {cid(1000), "cid 1000 is taken: leased to vm-1"},
        {cid(77), ""},
    };
    for (const Row& row : rows)
    {
        CAPTURE(row.wanted.text());
        const Plan out = plan({wish(row.wanted)}, held, host, ranges, {});
        if (row.message.empty())
        {
            REQUIRE_FALSE(out.refusal);
            REQUIRE(out.granted.size() == 1);
            CHECK(out.granted[0].value == row.wanted.value);
            continue;
        }
        REQUIRE(out.refusal);
        CHECK(out.refusal->error.code == Errc::already_exists);
        CHECK(out.refusal->error.message == row.message);
        CHECK_FALSE(out.refusal->error.hint.empty());
        CHECK(out.refusal->wanted == row.wanted.text());
    }
    const Plan nowhere = plan({wish(port(80, "192.0.2.1"))}, held, host, ranges, {});
    REQUIRE(nowhere.refusal);
    CHECK(nowhere.refusal->error.code == Errc::failed_precondition);
}

TEST_CASE("any: the next one that nobody has")
{
    FakeHost host;
    host.sockets = {{port(18001), "somebody"}};
    const std::vector<Held> held{{port(18000), "a", ""}, {cid(1000), "a", ""}};
    const auto chosen = [&](const std::vector<Held>& with, Start start, Resource wanted)
    {
        wanted.value = 0;
        const Plan out = plan({wish(wanted)}, with, host, ranges, start);
        return out.refusal ? 0u : out.granted[0].value;
    };
    CHECK(chosen(held, {}, port(1)) == 18002);
    CHECK(chosen(held, {0, 18003}, port(1)) == 18003);
    CHECK(chosen(held, {0, 18000}, port(1)) == 18002);
    CHECK(chosen(held, {0, 40000}, port(1)) == 18002);
    CHECK(chosen(held, {}, cid(1)) == 1001);
    CHECK(chosen(held, {1003, 0}, cid(1)) == 1003);
    CHECK(chosen({}, {}, port(1)) == 18000);

    host.ephemeral_first = 18002;
    host.ephemeral_last = 18002;
    CHECK(chosen(held, {}, port(1)) == 18003);

    std::vector<Held> full = held;
    full.push_back({port(18003, "0.0.0.0"), "b", ""});
    Resource wanted = port(1);
    wanted.value = 0;
    const Plan none = plan({wish(wanted)}, full, host, ranges, {});
    REQUIRE(none.refusal);
    CHECK(none.refusal->error.code == Errc::resource_exhausted);
    CHECK(none.refusal->error.message == "no free tcp port at 127.0.0.1 in 18000-18003");
}

TEST_CASE("a batch is all or nothing and does not collide with itself")
{
    FakeHost host;
    Resource any = port(1);
    any.value = 0;
    const Plan both = plan({wish(any), wish(any), wish(port(18000)), wish(cid(0))}, {}, host, ranges, {});
    REQUIRE_FALSE(both.refusal);
    REQUIRE(both.granted.size() == 4);
    CHECK(both.granted[0].value == 18001); // 18000 was asked for by name
    CHECK(both.granted[1].value == 18002);
    CHECK(both.granted[2].value == 18000);
    CHECK(both.granted[3].text() == "cid 1000");

    const Plan twice = plan({wish(port(80)), wish(port(80, "0.0.0.0"))}, {}, host, ranges, {});
    REQUIRE(twice.refusal);
    CHECK(twice.granted.empty());
    CHECK(twice.refusal->error.message == "tcp 0.0.0.0:80 is taken: leased to this reservation (80/tcp of the guest)");
}

TEST_CASE("the kernel is not asked about what is leased")
{
    FakeHost host;
    (void)plan({wish(port(8080))}, {{port(8080), "hello", ""}}, host, ranges, {});
    CHECK(host.asked.empty());
}
