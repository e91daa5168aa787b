#include "services/allocator/reconcile.hpp"
#include "tests/catch.hpp"

using namespace dstack;
using namespace dstack::allocator;

namespace
{

constexpr std::uint64_t now = 1'700'000'000'000;

Resource port(std::uint32_t number, const char* address = "127.0.0.1") { return {Kind::port, "tcp", Address::parse(address), number}; }
Resource cid(std::uint32_t number) { return {Kind::cid, {}, {}, number}; }
Watched lease(const char* id, Resource resource, const char* owner) { return {id, std::move(resource), owner, true, true, now - 60'000}; }
Use use(Resource resource, Process process, const char* why = "listens")
{
    Use out{std::move(resource), 0, std::move(process), why};
    out.last = out.resource.value;
    return out;
}
Process nginx() { return {812, "nginx", "nginx.service"}; }
Process vm(long pid, std::vector<std::uint32_t> cids, std::vector<Resource> forwards)
{
    return {pid, "qemu", "vm.service", "qemu ...", std::move(cids), std::move(forwards)};
}

const std::vector<Watched> hello{lease("lease-1", cid(1000), "hello"), lease("lease-2", port(18000), "hello"), lease("lease-3", port(18001), "hello")};

} // namespace

TEST_CASE("a foreign process on our port is a conflict")
{
    for (const char* address : {"127.0.0.1", "0.0.0.0", "::"})
    {
        CAPTURE(address);
        const auto found = compare(hello, {use(port(18000, address), nginx())}, now);
        REQUIRE(found.size() == 1);
        CHECK(found[0].trouble == Trouble::conflict);
        CHECK(found[0].lease == "lease-2");
        CHECK(found[0].reason == "tcp 127.0.0.1:18000 is leased to hello, but nginx, pid 812 (nginx.service) listens there");
        CHECK(found[0].key() == "conflict lease-2 812");
    }
    CHECK(compare(hello, {use(port(18000, "127.0.0.2"), nginx())}, now).empty());
    auto six = use(port(18000, "::"), nginx());
    six.only_v6 = true;
    CHECK(compare(hello, {six}, now).empty());
    // one whom we cannot see is not accused; an operator's lease is for whoever the operator starts
    CHECK(compare(hello, {use(port(18000), Process{})}, now).empty());
    auto manual = lease("lease-9", port(18000), "nginx");
    manual.by_service = false;
    CHECK(compare({manual}, {use(port(18000), nginx())}, now).empty());
    CHECK(process_of("nginx", {manual}, {use(port(18000), nginx())}).pid == 812);
}

TEST_CASE("the owner's VM is no conflict, another's is")
{
    const Process ours = vm(7, {1000}, {port(18000), port(18001)});
    CHECK(compare(hello, {use(cid(1000), ours, "cid of its guest"), use(port(18000), ours), use(port(18001), ours)}, now).empty());
    CHECK(process_of("hello", hello, {use(port(18000), ours)}).pid == 7);
    CHECK(process_of("other", hello, {use(port(18000), ours)}).pid == 0);
    // without a vsock device the VM has no CID
    const Process no_cid = vm(8, {}, {port(18000), port(18001)});
    CHECK(compare(hello, {use(port(18000), no_cid), use(port(18001), no_cid)}, now).empty());
    // a foreign VM with our CID and its own ports; and one on our port with its own CID
    const Process foreign = vm(9, {1000}, {port(9999)});
    auto found = compare(hello, {use(cid(1000), foreign, "cid of its guest")}, now);
    REQUIRE(found.size() == 1);
    CHECK(found[0].lease == "lease-1");
    found = compare(hello, {use(port(18000), vm(10, {1500}, {port(18000)}))}, now);
    REQUIRE(found.size() == 1);
    CHECK(found[0].lease == "lease-2");
    // a dstack-vmm whose pool covers our CID
    Use pool = use(cid(900), {11, "dstack-vmm"}, "cid pool of dstack-vmm (vmm.toml)");
    pool.last = 1899;
    found = compare(hello, {pool}, now);
    REQUIRE(found.size() == 1);
    CHECK(found[0].reason.find("cid 1000 is leased to hello, but dstack-vmm, pid 11 has it: cid pool") == 0);
}

TEST_CASE("a VM that does not use its port is drift, unless it has only just started")
{
    const Process ours = vm(7, {1000}, {port(18000)});
    const std::vector<Use> uses{use(cid(1000), ours, "cid of its guest"), use(port(18000), ours)};
    const auto found = compare(hello, uses, now);
    REQUIRE(found.size() == 1);
    CHECK(found[0].trouble == Trouble::drift);
    CHECK(found[0].lease == "lease-3");
    auto fresh = hello;
    for (auto& one : fresh) { one.since_ms = now - 1000; }
    CHECK(compare(fresh, uses, now).empty());
    auto reserved = hello;
    for (auto& one : reserved) { one.bound = false; }
    CHECK(compare(reserved, uses, now).empty());
    CHECK(compare(hello, {}, now).empty()); // a stopped VM keeps its leases
}

TEST_CASE("questions")
{
    const auto texts = [](const char* question)
    {
        std::string out;
        const auto parsed = parse_question(question);
        if (!parsed) { return parsed.error().message; }
        for (const auto& one : *parsed) { out += (out.empty() ? "" : ", ") + one.text(); }
        return out;
    };
    CHECK(texts("8080") == "tcp 0.0.0.0:8080, tcp [::]:8080, udp 0.0.0.0:8080, udp [::]:8080");
    CHECK(texts("udp:53") == "udp 0.0.0.0:53, udp [::]:53");
    CHECK(texts("tcp:127.0.0.1:80") == "tcp 127.0.0.1:80");
    CHECK(texts("tcp:[::1]:80") == "tcp [::1]:80");
    CHECK(texts("127.0.0.1:80") == "tcp 127.0.0.1:80, udp 127.0.0.1:80");
    CHECK(texts("cid:1003") == "cid 1003");
    CHECK(texts("vsock:10000") == "vsock port 10000");
    for (const char* bad : {"", "0", "65536", "cid:", "cid:x", "cid:4294967296", "tcp:", "sctp:1", "tcp:host:80", "8080x"})
    {
        CAPTURE(bad);
        CHECK_FALSE(parse_question(bad));
    }
}
