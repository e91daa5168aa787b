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
                                    "A connection or a request was refused. One per kind and second; `suppressed` counts what was not said."};
    std::uint64_t uid = 0;
    std::uint64_t pid = 0;
    std::string tried;
    std::string reason;
    std::uint64_t suppressed = 0;
    std::string kind;
    std::string address;
    std::string token;
    std::string key;
    std::string_view subject() const { return "bus"; }
    void describe(Fields& f)
    {
        f("uid", uid, "user id of a peer on this host, attested by the kernel; 0 over tcp");
        f("pid", pid, "process id of a peer on this host, attested by the kernel; 0 over tcp");
        f("tried", tried, "what it tried: connect, the command, or the event type");
        f("reason", reason, "the rule that refused it");
        f("suppressed", suppressed, "refusals of the same kind since the last such event that got none of their own");
        f.optional("kind", kind, "connect, handshake, token, access, quota or garbage");
        f.optional("address", address, "ip address of a peer over tcp, `unknown` when it was gone too soon; empty: a peer on this host");
        f.optional("token", token, "name of the token of a peer over tcp, when it is known");
        f.optional("key", key, "fingerprint of the key of a peer over tcp: 16 hex digits of its SHA-256");
    }
};

struct BusTokenCreated
{
    static constexpr EventType type{"bus.token_created", "bus", Severity::info, 1, "A remote operator may connect over tcp."};
    std::string name;
    std::string role;
    std::string expires;
    std::string key;
    std::string by;
    std::string_view subject() const { return name; }
    void describe(Fields& f)
    {
        f("name", name, "the token's name");
        f("role", role, "viewer, operator or admin");
        f("expires", expires, "when it ends, RFC 3339");
        f("key", key, "fingerprint of its public key: 16 hex digits of its SHA-256");
        f("by", by, "who created it, as attested");
    }
};

struct BusTokenRevoked
{
    static constexpr EventType type{"bus.token_revoked", "bus", Severity::warning, 1, "A token has no rights any more; its connections were cut."};
    std::string name;
    std::string role;
    std::string key;
    std::string by;
    std::string_view subject() const { return name; }
    void describe(Fields& f)
    {
        f("name", name, "the token's name");
        f("role", role, "the role that it had");
        f("key", key, "fingerprint of its public key");
        f("by", by, "who revoked it, as attested");
    }
};

struct BusTokenExpired
{
    static constexpr EventType type{"bus.token_expired", "bus", Severity::info, 1, "A token's time is over; its connections were cut."};
    std::string name;
    std::string role;
    std::string key;
    std::string_view subject() const { return name; }
    void describe(Fields& f)
    {
        f("name", name, "the token's name");
        f("role", role, "the role that it had");
        f("key", key, "fingerprint of its public key");
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

struct TokenEntry
{
    std::string name;
    std::string role;
    std::string state;
    std::string created;
    std::string expires;
    std::string key;
    std::string by;
    std::uint64_t connections = 0;
    void describe(Fields& f)
    {
        f("name", name, "the token's name");
        f("role", role, "viewer, operator or admin");
        f("state", state, "active, expired or revoked");
        f("created", created, "when it was created, RFC 3339");
        f("expires", expires, "when it ends, RFC 3339");
        f("key", key, "fingerprint of its public key");
        f("by", by, "who created it");
        f("connections", connections, "connections that are open with it now");
    }
};

struct BusCreateToken
{
    static constexpr CommandType type{"bus.create_token", "bus", Role::admin, "", 1,
                                      "Lets the holder of a key connect over tcp. The same name and key again: the same token."};
    std::string name;
    std::string role;
    std::string public_key;
    std::uint64_t expires_ms = 0;
    void describe(Fields& f)
    {
        f("name", name, "1 to 64 of a-z 0-9 . _ -");
        f("role", role, "viewer, operator or admin");
        f("public_key", public_key, "the client's CURVE public key, 64 hex digits; its secret key never leaves the one who made it");
        f("expires_ms", expires_ms, "unix time in ms at which it ends; at most ten years ahead");
    }
    struct Reply
    {
        TokenEntry token;
        std::string server_key;
        std::string address;
        bool already = false;
        void describe(Fields& f)
        {
            f("server_key", server_key, "the broker's CURVE public key, 64 hex digits: what the client must insist on");
            f("address", address, "HOST:PORT of the broker's commands socket; its events socket is on the next port");
            f("already", already, "there was this token before");
            token.describe(f);
        }
    };
};

struct BusListTokens
{
    static constexpr CommandType type{"bus.list_tokens", "bus", Role::admin, "", 1, "Who may connect over tcp. No secrets: the broker has none."};
    void describe(Fields&) {}
    struct Reply
    {
        std::string address;
        std::string server_key;
        std::vector<TokenEntry> tokens;
        void describe(Fields& f)
        {
            f("address", address, "HOST:PORT of the broker's commands socket; empty: it does not listen on tcp");
            f("server_key", server_key, "fingerprint of the broker's key; empty: it does not listen on tcp");
            f("tokens", tokens, "every token, also those that ended, by name");
        }
    };
};

struct BusRevokeToken
{
    static constexpr CommandType type{"bus.revoke_token", "bus", Role::admin, "", 1,
                                      "Takes a token's rights and cuts its connections, durably and at once."};
    std::string name;
    void describe(Fields& f) { f("name", name, "the token's name"); }
    struct Reply
    {
        TokenEntry token;
        bool already = false;
        std::uint64_t cut = 0;
        void describe(Fields& f)
        {
            f("already", already, "it was revoked before");
            f("cut", cut, "connections that were cut");
            token.describe(f);
        }
    };
};

} // namespace dstack::schema
