#pragma once
#include "bus/schema/types.hpp"

// The allocator's words: leases of CIDs and host ports.
namespace dstack::schema
{

/// One thing to lease or leased.
struct Lease
{
    std::string id;
    std::string kind;
    std::string protocol;
    std::string address;
    std::uint32_t value = 0;
    std::string owner;
    std::string purpose;
    std::string state;
    std::string since;
    std::string expires;
    std::string vm;
    std::string install;
    std::string caller;
    void describe(Fields& f)
    {
        f("id", id, "lease id");
        f("kind", kind, "cid, port or vsock_port");
        f.optional("protocol", protocol, "tcp or udp, for ports");
        f.optional("address", address, "host address, for ports");
        f("value", value, "the CID or the port number");
        f("owner", owner, "whose it is: the app or VM");
        f.optional("purpose", purpose, "what for, in the owner's words: \"80/tcp of the guest\"");
        f("state", state, "reserved, bound or released");
        f("since", since, "when it entered this state, RFC 3339");
        f.optional("expires", expires, "while reserved: when it is given back unless it is bound, RFC 3339");
        f.optional("vm", vm, "the VM that uses it, once bound: its UUID");
        f.optional("install", install, "state directory of the install that it belongs to; empty: this one");
        f.optional("caller", caller, "who reserved it: a service, or an operator with uid and pid");
    }
};

struct LeaseWish
{
    std::string kind;
    std::string protocol;
    std::string address;
    std::uint32_t value = 0;
    std::string purpose;
    bool privileged = false;
    void describe(Fields& f)
    {
        f("kind", kind, "cid, port or vsock_port");
        f.optional("protocol", protocol, "tcp or udp, for ports; default tcp");
        f.optional("address", address, "host address, for ports; default 127.0.0.1");
        f.optional("value", value, "the one that is wanted; 0: any free one");
        f.optional("purpose", purpose, "what for, shown by `dstack leases`");
        f.optional("privileged", privileged, "a port below ip_unprivileged_port_start (1024) may be granted");
    }
};

struct LeaseReserve
{
    static constexpr CommandType type{"lease.reserve", "allocator", Role::operator_, "deployer vmm-local", 1,
                                      "Reserve all of the wishes or none. The same key gives the same leases."};
    std::string key;
    std::string owner;
    std::vector<LeaseWish> wishes;
    std::uint64_t ttl_ms = 600'000;
    void describe(Fields& f)
    {
        f("key", key, "idempotency key of the reservation: with the owner it names this batch for ever");
        f("owner", owner, "whose leases they will be");
        f("wishes", wishes, "what is wanted, in order");
        f.optional("ttl_ms", ttl_ms, "how long a reservation lives without being bound, in ms");
    }
    struct Reply
    {
        std::vector<Lease> leases;
        void describe(Fields& f) { f("leases", leases, "one per wish, in order"); }
    };
};

struct LeaseBind
{
    static constexpr CommandType type{"lease.bind", "allocator", Role::none, "deployer vmm-local", 1,
                                      "The owner's leases are in use now and stay until they are released."};
    std::string owner;
    std::string vm;
    void describe(Fields& f)
    {
        f("owner", owner, "whose reserved leases become bound");
        f.optional("vm", vm, "the VM that uses them: its UUID");
    }
    using Reply = Empty;
};

struct LeaseRelease
{
    static constexpr CommandType type{"lease.release", "allocator", Role::operator_, "deployer vmm-local", 1,
                                      "Give back leases: all of an owner, or one by id. Giving back twice is no error."};
    std::string owner;
    std::string id;
    std::string reason;
    void describe(Fields& f)
    {
        f.optional("owner", owner, "all leases of this owner; from an operator only while neither its app nor its process is there");
        f.optional("id", id, "or this one lease");
        f.optional("reason", reason, "why, for the event");
    }
    struct Reply
    {
        std::uint32_t released = 0;
        void describe(Fields& f) { f("released", released, "how many were given back"); }
    };
};

struct LeaseList
{
    static constexpr CommandType type{"lease.list", "allocator", Role::viewer, "deployer vmm-local", 1,
                                      "Leases that are reserved or bound, page by page."};
    std::string owner;
    bool all = false;
    std::uint64_t after = 0;
    std::uint32_t limit = 0;
    bool compact = false;
    void describe(Fields& f)
    {
        f.optional("owner", owner, "only of this owner");
        f.optional("all", all, "those of the host's other installs too");
        f.optional("after", after, "`next` of the page before");
        f.optional("limit", limit, "leases in one page, at most 2000, or 5000 compact ones; 0: as many");
        f.optional("compact", compact, "answer with `rows` instead of `leases`: a tenth of the work where there are thousands");
    }
    struct Reply
    {
        std::vector<Lease> leases;
        std::string rows;
        std::uint64_t next = 0;
        std::string database;
        bool host_wide = false;
        void describe(Fields& f)
        {
            f("leases", leases, "in the order they were granted");
            f.optional("rows", rows,
                       "compact: one line each, with tabs between id, kind, protocol, address, value, owner, purpose, state, since and expires in unix ms,"
                       " vm, install and caller");
            f.optional("next", next, "ask again with this as `after`; 0: that was all");
            f.optional("database", database, "where the leases are kept");
            f.optional("host_wide", host_wide, "whether all installs of the host keep theirs there");
        }
    };
};

/// What somebody on the host uses, as the kernel and /proc show it.
struct HostUse
{
    std::string kind;
    std::string protocol;
    std::string address;
    std::uint32_t value = 0;
    std::uint32_t last = 0;
    std::uint64_t pid = 0;
    std::string process;
    std::string unit;
    std::string command;
    std::string why;
    std::string lease;
    std::string owner;
    void describe(Fields& f)
    {
        f("kind", kind, "cid, port or vsock_port");
        f.optional("protocol", protocol, "tcp or udp, for ports");
        f.optional("address", address, "host address, for ports");
        f("value", value, "the CID or the port number");
        f.optional("last", last, "the last one of a range; 0: it is only one");
        f.optional("pid", pid, "the process; 0: it cannot be seen");
        f.optional("process", process, "its name");
        f.optional("unit", unit, "its systemd unit, or its control group");
        f.optional("command", command, "its command line, cut at 200 characters");
        f("why", why, "listens, cid of its guest, cid pool of dstack-vmm (file), libvirt domain NAME, ...");
        f.optional("lease", lease, "the lease that covers it, if there is one");
        f.optional("owner", owner, "that lease's owner");
    }
};

struct LeaseHost
{
    static constexpr CommandType type{"lease.host", "allocator", Role::viewer, "", 1,
                                      "What is in use on the host now, leased or not: one look at the kernel's sockets and at /proc, page by page."};
    std::uint64_t after = 0;
    std::uint32_t limit = 0;
    void describe(Fields& f)
    {
        f.optional("after", after, "`next` of the page before");
        f.optional("limit", limit, "uses in one page, at most 1000; 0: 1000");
    }
    struct Reply
    {
        std::vector<HostUse> uses;
        std::uint64_t next = 0;
        std::uint64_t look_us = 0;
        void describe(Fields& f)
        {
            f("uses", uses, "CIDs first, then ports");
            f.optional("next", next, "ask again with this as `after`; 0: that was all");
            f.optional("look_us", look_us, "how long the look took, in us");
        }
    };
};

struct LeaseExplain
{
    static constexpr CommandType type{"lease.explain", "allocator", Role::viewer, "", 1, "Who has a port, a CID or a vsock port, and whether it would be granted."};
    std::string what;
    void describe(Fields& f) { f("what", what, "8080, tcp:8080, udp:127.0.0.1:53, tcp:[::1]:80, cid:1003, vsock:10000"); }
    struct Reply
    {
        std::string what;
        bool free = false;
        std::vector<std::string> reasons;
        std::vector<Lease> leases;
        std::vector<HostUse> uses;
        void describe(Fields& f)
        {
            f("what", what, "as it was understood");
            f("free", free, "it would be granted now, when it is asked for by name");
            f("reasons", reasons, "why, one sentence each");
            f("leases", leases, "leases that are in the way");
            f("uses", uses, "what the host uses of it");
        }
    };
};

struct LeaseGranted
{
    static constexpr EventType type{"lease.granted", "allocator", Severity::info, 1, "A CID or a host port belongs to an owner now."};
    Lease lease;
    std::string_view subject() const { return lease.owner; }
    void describe(Fields& f) { lease.describe(f); }
};

struct LeaseReleased
{
    static constexpr EventType type{"lease.released", "allocator", Severity::info, 1, "A lease was given back or ran out."};
    Lease lease;
    std::string reason;
    std::string_view subject() const { return lease.owner; }
    void describe(Fields& f)
    {
        lease.describe(f);
        f("reason", reason, "removed, failed deploy, expired, operator, ...");
    }
};

struct LeaseRefused
{
    static constexpr EventType type{"lease.refused", "allocator", Severity::warning, 1, "A reservation could not be granted."};
    std::string owner;
    std::string wanted;
    std::string reason;
    std::string_view subject() const { return owner; }
    void describe(Fields& f)
    {
        f("owner", owner, "who asked");
        f("wanted", wanted, "for example \"tcp 127.0.0.1:8080\"");
        f("reason", reason, "who holds it, or what is exhausted");
    }
};

struct LeaseConflict
{
    static constexpr EventType type{"lease.conflict", "allocator", Severity::error, 1, "Somebody else uses what is leased."};
    Lease lease;
    std::uint64_t pid = 0;
    std::string process;
    std::string unit;
    std::string command;
    std::string reason;
    std::string_view subject() const { return lease.owner; }
    void describe(Fields& f)
    {
        lease.describe(f);
        f("pid", pid, "the process that has it");
        f("process", process, "its name");
        f.optional("unit", unit, "its systemd unit, or its control group");
        f.optional("command", command, "its command line, cut at 200 characters");
        f("reason", reason, "in words");
    }
};

struct LeaseLeaked
{
    static constexpr EventType type{"lease.leaked", "allocator", Severity::warning, 1, "A bound lease whose app is gone: nobody will give it back."};
    Lease lease;
    std::string reason;
    std::string_view subject() const { return lease.owner; }
    void describe(Fields& f)
    {
        lease.describe(f);
        f("reason", reason, "in words, with the command that gives it back");
    }
};

struct LeaseDrift
{
    static constexpr EventType type{"lease.drift", "allocator", Severity::warning, 1, "A VM runs, and does not use what is leased for it."};
    Lease lease;
    std::uint64_t pid = 0;
    std::string reason;
    std::string_view subject() const { return lease.owner; }
    void describe(Fields& f)
    {
        lease.describe(f);
        f("pid", pid, "the VM's process");
        f("reason", reason, "in words");
    }
};

} // namespace dstack::schema
