#pragma once
#include "bus/schema/types.hpp"

// The auth process' words: the policy and its decisions.
namespace dstack::schema
{

struct AuthAllowApp
{
    static constexpr CommandType type{"auth.allow_app", "auth", Role::operator_, "deployer", 1,
                                      "Allow a compose hash for an app. Allowing twice is no error."};
    std::string app_id;
    std::string compose_hash;
    std::string reason;
    std::string expires;
    void describe(Fields& f)
    {
        f("app_id", app_id, "40 hex");
        f("compose_hash", compose_hash, "64 hex");
        f.optional("reason", reason, "why, for the record");
        f.optional("expires", expires, "RFC 3339: from then on it is denied again; empty: never. What is allowed for longer stays so");
    }
    struct Reply
    {
        bool changed = false;
        std::string policy_hash;
        void describe(Fields& f)
        {
            f("changed", changed, "false when it was so already");
            f("policy_hash", policy_hash, "SHA-256 of the policy file now, hex");
        }
    };
};

struct AuthRevokeApp
{
    static constexpr CommandType type{"auth.revoke_app", "auth", Role::operator_, "deployer", 1,
                                      "Take a compose hash of an app back, or the whole app. Revoking twice is no error."};
    std::string app_id;
    std::string compose_hash;
    std::string reason;
    void describe(Fields& f)
    {
        f("app_id", app_id, "40 hex");
        f.optional("compose_hash", compose_hash, "64 hex; empty: every hash of the app");
        f.optional("reason", reason, "why, for the record");
    }
    using Reply = AuthAllowApp::Reply;
};

struct AuthAllowImage
{
    static constexpr CommandType type{"auth.allow_image", "auth", Role::admin, "deployer", 1, "Allow an OS image. Allowing twice is no error."};
    std::string os_image_hash;
    std::string reason;
    std::string expires;
    void describe(Fields& f)
    {
        f("os_image_hash", os_image_hash, "64 hex: the image's digest.txt");
        f.optional("reason", reason, "why, for the record");
        f.optional("expires", expires, "RFC 3339: from then on it is denied again; empty: never");
    }
    using Reply = AuthAllowApp::Reply;
};

struct AuthRevokeImage
{
    static constexpr CommandType type{"auth.revoke_image", "auth", Role::admin, "", 1, "Take an OS image back. Revoking twice is no error."};
    std::string os_image_hash;
    std::string reason;
    void describe(Fields& f)
    {
        f("os_image_hash", os_image_hash, "64 hex");
        f.optional("reason", reason, "why, for the record");
    }
    using Reply = AuthAllowApp::Reply;
};

struct AuthSetPolicy
{
    static constexpr CommandType type{"auth.set_policy", "auth", Role::admin, "", 1,
                                      "Replace the whole policy file, also one that is damaged or missing. The same text again is no error."};
    std::string policy;
    std::string expected_hash;
    std::string reason;
    void describe(Fields& f)
    {
        f("policy", policy, "the text of the file; refused unless it is a valid policy");
        f.optional("expected_hash", expected_hash, "SHA-256 of the file that this replaces, hex: any other is left alone (aborted); empty: whatever is there");
        f.optional("reason", reason, "why, for the record");
    }
    using Reply = AuthAllowApp::Reply;
};

struct AuthPolicy
{
    static constexpr CommandType type{"auth.policy", "auth", Role::viewer, "", 1, "The policy file as it is now."};
    void describe(Fields&) {}
    struct Reply
    {
        std::string policy_hash;
        std::string error;
        std::uint64_t apps = 0;
        std::uint64_t age_ms = 0;
        std::string policy;
        void describe(Fields& f)
        {
            f("policy_hash", policy_hash, "SHA-256 of the file, hex; empty: it cannot be read");
            f("error", error, "why it cannot be used, and everything is denied; empty: it can");
            f("apps", apps, "how many are registered");
            f("age_ms", age_ms, "since it was written");
            f.optional("policy", policy, "its text; left out when it is longer than 256 KiB");
        }
    };
};

/// One decision of the ledger.
struct Decision
{
    std::uint64_t sequence = 0;
    std::string time;
    std::string kind;
    bool allowed = false;
    std::string rule;
    std::string reason;
    std::string expected;
    std::string got;
    std::string app_id;
    std::string compose_hash;
    std::string instance_id;
    std::string os_image_hash;
    std::string policy_hash;
    void describe(Fields& f)
    {
        f("sequence", sequence, "number in the decision ledger");
        f("time", time, "RFC 3339 UTC");
        f("kind", kind, "app or kms");
        f("allowed", allowed, "whether keys may be released");
        f("rule", rule, "the rule that decided: tcb_status, advisory, os_image, app, compose_hash, device, aggregated_mr, request, policy, contract (it decided), chain (it could not be asked)");
        f("reason", reason, "as the KMS was told; empty when allowed");
        f.optional("expected", expected, "what the rule wanted");
        f.optional("got", got, "what came");
        f.optional("app_id", app_id, "40 hex");
        f.optional("compose_hash", compose_hash, "64 hex");
        f.optional("instance_id", instance_id, "40 hex or empty");
        f.optional("os_image_hash", os_image_hash, "64 hex or empty");
        f.optional("policy_hash", policy_hash, "SHA-256 of the policy file that was in force, hex; with a contract: the hash of the block");
    }
};

struct AuthDecisions
{
    static constexpr CommandType type{"auth.decisions", "auth", Role::viewer, "deployer", 1, "The newest decisions, newest first."};
    std::string app_id;
    std::uint32_t limit = 20;
    void describe(Fields& f)
    {
        f.optional("app_id", app_id, "only of this app");
        f.optional("limit", limit, "at most this many, 1 to 1000");
    }
    struct Reply
    {
        std::vector<Decision> decisions;
        void describe(Fields& f) { f("decisions", decisions, "newest first"); }
    };
};

struct AuthDecided
{
    static constexpr EventType type{"auth.decided", "auth", Severity::info, 1,
                                    "The KMS asked whether a boot may get keys, and was answered. Published with severity warning when denied."};
    Decision decision;
    std::string_view subject() const { return decision.app_id; }
    Severity severity() const { return decision.allowed ? Severity::info : Severity::warning; }
    void describe(Fields& f) { decision.describe(f); }
};

struct AuthPolicyChanged
{
    static constexpr EventType type{"auth.policy_changed", "auth", Severity::info, 1, "The policy file is another one now."};
    std::string change;
    std::string app_id;
    std::string compose_hash;
    std::string policy_hash;
    std::string by;
    std::string_view subject() const { return app_id; }
    void describe(Fields& f)
    {
        f("change", change, "allow_app, revoke_app, allow_image, revoke_image, set_policy, created, external (somebody else wrote the file), invalid");
        f.optional("app_id", app_id, "40 hex");
        f.optional("compose_hash", compose_hash, "64 hex");
        f("policy_hash", policy_hash, "SHA-256 of the file now, hex");
        f("by", by, "who asked, as the broker attested it");
    }
};

} // namespace dstack::schema
