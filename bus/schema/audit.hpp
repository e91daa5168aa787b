#pragma once
#include "bus/schema/types.hpp"

// What the auth process answers about its decision ledger. A record is a line of the ledger, as docs/ledger.md has it.
namespace dstack::schema
{

struct AuthLedgerChanged
{
    static constexpr EventType type{"auth.ledger_changed", "auth", Severity::info, 1,
                                    "How the decision ledger fares is another now. Published with severity warning when space is low, error when it cannot be written."};
    std::string state;
    std::string reason;
    std::uint64_t free_bytes = 0;
    std::uint64_t denied = 0;
    std::string_view subject() const { return {}; }
    Severity severity() const { return state == "failing" ? Severity::error : state == "low" ? Severity::warning : Severity::info; }
    void describe(Fields& f)
    {
        f("state", state, "ok; low: less than a tenth of its disk is free; failing: it cannot be written, and every boot is denied");
        f("reason", reason, "why; empty when ok");
        f("free_bytes", free_bytes, "free on its disk for the service");
        f("denied", denied, "decisions that were denied because they could not be recorded, since the last time it was ok");
    }
};

struct AuthAudit
{
    static constexpr CommandType type{"auth.audit", "auth", Role::viewer, "", 1, "Records of the decision ledger."};
    std::string app_id;
    std::string kind;
    bool denied = false;
    bool allowed = false;
    std::uint64_t since_ms = 0;
    std::uint64_t sequence = 0;
    std::uint64_t before = 0;
    std::uint64_t from = 0;
    std::uint32_t limit = 50;
    void describe(Fields& f)
    {
        f.optional("app_id", app_id, "only of this app, 40 hex");
        f.optional("kind", kind, "only of this kind: app, kms, policy, repair");
        f.optional("denied", denied, "only decisions that denied");
        f.optional("allowed", allowed, "only decisions that allowed");
        f.optional("since_ms", since_ms, "only records from this time on, unix time in ms");
        f.optional("sequence", sequence, "only this record");
        f.optional("before", before, "only records with a smaller number: the `next` of the page before");
        f.optional("from", from, "oldest first, from this number on: 1, or the `next` of the page before");
        f.optional("limit", limit, "at most this many, 1 to 1000");
    }
    struct Reply
    {
        std::vector<std::string> records;
        std::uint64_t next = 0;
        std::uint64_t newest = 0;
        void describe(Fields& f)
        {
            f("records", records, "lines of the ledger, newest first unless `from` is given");
            f("next", next, "pass as `before`, or as `from`, for what follows; 0: there is no more");
            f("newest", newest, "the number of the newest record");
        }
    };
};

/// One check of a decision.
struct Check
{
    std::string rule;
    bool pass = false;
    std::string expected;
    std::string got;
    void describe(Fields& f)
    {
        f("rule", rule, "as in the decision");
        f("pass", pass, "whether it held");
        f("expected", expected, "what the policy wanted");
        f("got", got, "what came");
    }
};

struct AuthExplain
{
    static constexpr CommandType type{"auth.explain", "auth", Role::viewer, "", 1,
                                      "Why a boot was allowed or denied: the decision, the changes of the policy behind it, and what would allow it."};
    std::uint64_t sequence = 0;
    std::string app_id;
    std::string instance_id;
    void describe(Fields& f)
    {
        f.optional("sequence", sequence, "this decision; 0: the newest one of the app or instance");
        f.optional("app_id", app_id, "40 hex");
        f.optional("instance_id", instance_id, "40 hex");
    }
    struct Reply
    {
        std::string record;
        std::vector<Check> checks;
        std::string policy_record;
        std::string allowed_by;
        std::string revoked_by;
        bool same_policy = false;
        bool allowed_now = false;
        std::string rule_now;
        std::string reason_now;
        std::string nearest;
        std::uint32_t nearest_distance = 0;
        std::string nearest_is;
        std::vector<std::string> commands;
        bool complete = true;
        void describe(Fields& f)
        {
            f("record", record, "the decision: a line of the ledger; empty: there is none");
            f("checks", checks, "every rule that was checked, in order");
            f("policy_record", policy_record, "the record that put the policy of the decision in force; empty: not found");
            f("allowed_by", allowed_by, "the newest record before the decision that allowed this compose hash for the app; empty: none");
            f("revoked_by", revoked_by, "the newest record before the decision that took it back; empty: none");
            f("same_policy", same_policy, "whether the policy is still the one of the decision");
            f("allowed_now", allowed_now, "whether the policy of now would allow the same boot");
            f("rule_now", rule_now, "the rule that would decide now");
            f("reason_now", reason_now, "as the KMS would be told now; empty when allowed");
            f("nearest", nearest, "the allowed value that is most like the refused one; empty: nothing is allowed there");
            f("nearest_distance", nearest_distance, "hex digits in which it differs");
            f("nearest_is", nearest_is, "what it is: a compose hash of the same app, of another app, an app id, an OS image, ...");
            f("commands", commands, "what to run to allow it");
            f("complete", complete, "false when the ledger is so long that older records were not searched");
        }
    };
};

struct AuthTestPolicy
{
    static constexpr CommandType type{"auth.test_policy", "auth", Role::viewer, "", 1,
                                      "Decides boots without telling anybody: which decisions would be others? Nothing is recorded."};
    std::string policy;
    std::string boot_info;
    std::string kind;
    std::uint64_t sequence = 0;
    std::uint32_t last = 0;
    void describe(Fields& f)
    {
        f.optional("policy", policy, "the text of a policy file; empty: the policy in force");
        f.optional("boot_info", boot_info, "a body as the KMS posts it, as text");
        f.optional("kind", kind, "app or kms, for boot_info; empty: app");
        f.optional("sequence", sequence, "the boot of this decision");
        f.optional("last", last, "the boots of the newest decisions, 1 to 100000");
    }
    struct Tested
    {
        std::uint64_t sequence = 0;
        std::string time;
        std::string kind;
        std::string app_id;
        std::string compose_hash;
        bool was = false;
        bool now = false;
        std::string rule;
        std::string reason;
        std::vector<Check> checks;
        void describe(Fields& f)
        {
            f("sequence", sequence, "the decision; 0 for boot_info");
            f("time", time, "of the decision, RFC 3339; empty for boot_info");
            f("kind", kind, "app or kms");
            f("app_id", app_id, "40 hex");
            f("compose_hash", compose_hash, "64 hex");
            f("was", was, "what the decision was; for boot_info: what the policy in force says");
            f("now", now, "what it would be");
            f("rule", rule, "the rule that would decide");
            f("reason", reason, "as the KMS would be told; empty when allowed");
            f.optional("checks", checks, "every rule, when one boot was asked about");
        }
    };
    struct Reply
    {
        std::string policy_hash;
        std::uint64_t tested = 0;
        std::uint64_t allowed = 0;
        std::uint64_t to_allowed = 0;
        std::uint64_t to_denied = 0;
        std::uint64_t skipped = 0;
        std::vector<Tested> results;
        void describe(Fields& f)
        {
            f("policy_hash", policy_hash, "SHA-256 of the policy that was tested, hex");
            f("tested", tested, "boots that were decided");
            f("allowed", allowed, "how many of them would be allowed");
            f("to_allowed", to_allowed, "denied then, would be allowed");
            f("to_denied", to_denied, "allowed then, would be denied");
            f("skipped", skipped, "decisions that hold no boot, as the request was none");
            f("results", results, "with `last` the flips, newest first, at most 500; else the one boot");
        }
    };
};

} // namespace dstack::schema
