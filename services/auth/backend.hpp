#pragma once
#include "services/auth/decide.hpp"
#include "shared/runtime/task.hpp"
#include <memory>
#include <optional>
#include <string>

namespace dstack::auth
{

/// What a decision stands on; shared by all decisions of one state of the policy.
struct Ground
{
    std::string gateway_app_id; ///< goes into the answer
    std::string policy_hash;    ///< names the state: the SHA-256 of a file, or of a block; empty when there is none
};

struct Judgement
{
    Verdict verdict;
    std::shared_ptr<const Ground> ground; ///< never null
};

/// The answer to GET /.
struct Info
{
    int status = 200;
    std::string body{};
};

struct Health
{
    std::string trouble{};     ///< why everything is denied; empty: nothing is wrong
    std::string policy_hash{}; ///< of the state that is in force
};

/// Who knows what may boot: the policy file, or a contract on a chain. Turns a question into a verdict; knows nothing of
/// HTTP, the ledger or the bus. One per process, used on the loop.
class Backend
{
  public:
    Backend() = default;
    Backend(const Backend&) = delete;
    Backend& operator=(const Backend&) = delete;
    virtual ~Backend() = default;

    /// Never fails and never waits without an end: what could not be found out is a denial whose reason names the
    /// cause. `boot` outlives the task. May be destroyed while it waits.
    virtual Task<Judgement> decide(Kind kind, const BootInfo& boot) = 0;
    /// What is asked from here until the loop next waits may be answered from what is there now: called once for all
    /// requests of one turn, after the last of them was read.
    virtual void look() {}
    /// The same without waiting, where that can be: the short way of every request. nullopt: ask `decide`.
    virtual std::optional<Judgement> decide_now(Kind kind, const BootInfo& boot) = 0;
    /// The newest that is known, for the record of a request that was no question. Never null.
    virtual std::shared_ptr<const Ground> ground() const = 0;
    virtual Task<Info> info() = 0;
    virtual Task<Health> health() = 0;
    /// Adds families of its own to GET /metrics (OpenMetrics text, each with # TYPE, # HELP; no # EOF).
    virtual void append_metrics(std::string& out) const = 0;
};

} // namespace dstack::auth
