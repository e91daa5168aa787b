#pragma once
#include "bus/schema/types.hpp"

// The words of the embedded KMS and of the one who looks after a KMS.
namespace dstack::schema
{

struct KeyReleased
{
    static constexpr EventType type{"key.released", "kms-local", Severity::info, 1, "The KMS gave an instance its keys."};
    std::string app_id;
    std::string instance_id;
    std::string compose_hash;
    bool simulated = true;
    std::string_view subject() const { return app_id; }
    void describe(Fields& f)
    {
        f("app_id", app_id, "40 hex");
        f("instance_id", instance_id, "40 hex or empty");
        f("compose_hash", compose_hash, "64 hex");
        f("simulated", simulated, "the attestation was simulated: no TEE stands behind it");
    }
};

struct KeyRefused
{
    static constexpr EventType type{"key.refused", "kms-local", Severity::warning, 1, "The KMS refused to give keys."};
    std::string app_id;
    std::string instance_id;
    std::string compose_hash;
    std::string reason;
    std::string_view subject() const { return app_id; }
    void describe(Fields& f)
    {
        f("app_id", app_id, "40 hex; empty when the attestation did not verify");
        f.optional("instance_id", instance_id, "40 hex or empty");
        f.optional("compose_hash", compose_hash, "64 hex or empty");
        f("reason", reason, "as the guest was told");
    }
};

struct KmsBootstrapped
{
    static constexpr EventType type{"kms.bootstrapped", "kms-local", Severity::warning, 1, "The embedded KMS made its root keys. Happens once."};
    std::string ca_fingerprint;
    std::string k256_pubkey;
    std::string_view subject() const { return "kms"; }
    void describe(Fields& f)
    {
        f("ca_fingerprint", ca_fingerprint, "SHA-256 of the CA certificate, hex");
        f("k256_pubkey", k256_pubkey, "compressed secp256k1 key, hex");
    }
};

/// What is known of the KMS; the fields of every kms.* event of the supervisor and of kms.status.
struct KmsState
{
    std::string state;
    std::string url;
    std::uint64_t pid = 0;
    std::uint32_t restarts = 0;
    std::string reason;
    std::string ca_fingerprint;
    std::string k256_pubkey;
    void describe(Fields& f)
    {
        f("state", state, "starting, ready, unready, backoff, failed, stopped");
        f("url", url, "where it is asked");
        f("pid", pid, "its process, 0 when it is not ours");
        f("restarts", restarts, "since it was last ready for a while");
        f.optional("reason", reason, "why it is not ready; for failed: crash_loop, identity_changed, ...");
        f.optional("ca_fingerprint", ca_fingerprint, "pinned SHA-256 of its CA certificate, hex");
        f.optional("k256_pubkey", k256_pubkey, "pinned key, hex");
    }
};

struct KmsStarting
{
    static constexpr EventType type{"kms.starting", "kms-supervisor", Severity::info, 1, "The KMS process was started."};
    KmsState kms;
    std::string_view subject() const { return "kms"; }
    void describe(Fields& f) { kms.describe(f); }
};
struct KmsReady
{
    static constexpr EventType type{"kms.ready", "kms-supervisor", Severity::info, 1,
                                    "The KMS answered GetMeta with a CA certificate that parses and is the pinned one."};
    KmsState kms;
    std::string_view subject() const { return "kms"; }
    void describe(Fields& f) { kms.describe(f); }
};
struct KmsUnready
{
    static constexpr EventType type{"kms.unready", "kms-supervisor", Severity::warning, 1, "The KMS stopped answering, or exited."};
    KmsState kms;
    std::string_view subject() const { return "kms"; }
    void describe(Fields& f) { kms.describe(f); }
};
struct KmsFailed
{
    static constexpr EventType type{"kms.failed", "kms-supervisor", Severity::error, 1, "The supervisor gave up on the KMS until an operator acts."};
    KmsState kms;
    std::string_view subject() const { return "kms"; }
    void describe(Fields& f) { kms.describe(f); }
};
struct KmsIdentityPinned
{
    static constexpr EventType type{"kms.identity_pinned", "kms-supervisor", Severity::warning, 1, "The KMS was seen for the first time; this identity is the one from now on."};
    KmsState kms;
    std::string_view subject() const { return "kms"; }
    void describe(Fields& f) { kms.describe(f); }
};
struct KmsIdentityChanged
{
    static constexpr EventType type{"kms.identity_changed", "kms-supervisor", Severity::error, 1, "Another KMS answers than the pinned one. Fails closed."};
    KmsState kms;
    std::string got_ca_fingerprint;
    std::string got_k256_pubkey;
    std::string_view subject() const { return "kms"; }
    void describe(Fields& f)
    {
        kms.describe(f);
        f("got_ca_fingerprint", got_ca_fingerprint, "what answered, SHA-256 hex");
        f("got_k256_pubkey", got_k256_pubkey, "what answered, hex");
    }
};

struct KmsStatus
{
    static constexpr CommandType type{"kms.status", "kms-supervisor", Role::viewer, "deployer", 1, "What is known of the KMS, with its evidence."};
    void describe(Fields&) {}
    struct Reply
    {
        KmsState kms;
        std::string observed_at;
        void describe(Fields& f)
        {
            kms.describe(f);
            f("observed_at", observed_at, "when it last answered a probe, RFC 3339; empty: never");
        }
    };
};

} // namespace dstack::schema
