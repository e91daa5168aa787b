#pragma once
#include "bus/schema/types.hpp"

// What the broker itself says and serves.
namespace dstack::schema
{

struct BusStarted
{
    static constexpr EventType type{"bus.started", "bus", Severity::info, 1, "The broker is up and its journal was checked."};
    std::string version;
    std::uint64_t epoch = 0;
    std::uint64_t first_sequence = 0;
    std::uint64_t last_sequence = 0;
    std::string_view subject() const { return "bus"; }
    void describe(Fields& f)
    {
        f("version", version, "the broker's version");
        f("epoch", epoch, "the journal's epoch: the first half of every cursor");
        f("first_sequence", first_sequence, "oldest event that the journal still has");
        f("last_sequence", last_sequence, "newest event before this one");
    }
};

struct BusPeerRefused
{
    static constexpr EventType type{"bus.peer_refused", "bus", Severity::warning, 1,
                                    "A connection or a request was refused. Rate-limited; `suppressed` counts what was not said."};
    std::uint64_t uid = 0;
    std::uint64_t pid = 0;
    std::string tried;
    std::string reason;
    std::uint64_t suppressed = 0;
    std::string_view subject() const { return "bus"; }
    void describe(Fields& f)
    {
        f("uid", uid, "user id of the peer, attested by the kernel");
        f("pid", pid, "process id of the peer, attested by the kernel");
        f("tried", tried, "what it tried: connect, the command, or the event type");
        f("reason", reason, "the rule that refused it");
        f("suppressed", suppressed, "refusals since the last such event that got none of their own");
    }
};

struct ServiceUp
{
    static constexpr EventType type{"service.up", "bus", Severity::info, 1, "A service registered with the broker."};
    std::string service;
    std::uint64_t pid = 0;
    std::string version;
    std::string_view subject() const { return service; }
    void describe(Fields& f)
    {
        f("service", service, "name on the bus");
        f("pid", pid, "its process id");
        f("version", version, "its version");
    }
};

struct ServiceDown
{
    static constexpr EventType type{"service.down", "bus", Severity::warning, 1, "A registered service is gone."};
    std::string service;
    std::uint64_t pid = 0;
    std::string reason;
    std::string_view subject() const { return service; }
    void describe(Fields& f)
    {
        f("service", service, "name on the bus");
        f("pid", pid, "its process id");
        f("reason", reason, "goodbye (it said so), process exited, silent (no heartbeat), replaced");
    }
};

struct BusGap
{
    static constexpr EventType type{"bus.gap", "bus", Severity::error, 1,
                                    "The journal lost events: a torn tail was repaired, or retention removed them."};
    std::uint64_t from = 0;
    std::uint64_t to = 0;
    std::string reason;
    std::string_view subject() const { return "bus"; }
    void describe(Fields& f)
    {
        f("from", from, "first sequence that is lost");
        f("to", to, "last sequence that is lost");
        f("reason", reason, "why");
    }
};

struct BusJournalRecovered
{
    static constexpr EventType type{"bus.journal_recovered", "bus", Severity::error, 1,
                                    "The journal takes events again, after it could not: publishers were refused meanwhile and sent theirs again."};
    std::uint64_t failed_ms = 0;
    std::uint64_t refused = 0;
    std::string error;
    std::string_view subject() const { return "bus"; }
    void describe(Fields& f)
    {
        f("failed_ms", failed_ms, "for how long it took none");
        f("refused", refused, "events that were refused, each as often as it was tried");
        f("error", error, "why: a full disk, an I/O error");
    }
};

struct ServiceEntry
{
    std::string service;
    std::string state;
    std::uint64_t pid = 0;
    std::string version;
    std::string since;
    std::uint64_t pending = 0;
    std::string last_seen{};
    std::uint64_t restarts = 0;
    void describe(Fields& f)
    {
        f("service", service, "name on the bus");
        f("state", state, "up or down");
        f("pid", pid, "process id of the last registration");
        f("version", version, "its version");
        f("since", since, "when it entered this state, RFC 3339");
        f("pending", pending, "commands that wait for it or that it works on");
        f.optional("last_seen", last_seen, "when its last message came, RFC 3339; empty: not in this run of the broker");
        f.optional("restarts", restarts, "registrations by another process than before, in this run of the broker");
    }
};

struct BusServices
{
    static constexpr CommandType type{"bus.services", "bus", Role::viewer, "", 1, "Who is registered, and since when."};
    void describe(Fields&) {}
    struct Reply
    {
        std::string version;
        std::uint64_t epoch = 0;
        std::uint64_t last_sequence = 0;
        std::vector<ServiceEntry> services;
        void describe(Fields& f)
        {
            f("version", version, "the broker's version");
            f("epoch", epoch, "the journal's epoch");
            f("last_sequence", last_sequence, "newest durable event");
            f("services", services, "every service that ever registered in this run of the broker");
        }
    };
};

} // namespace dstack::schema
