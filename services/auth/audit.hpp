#pragma once
#include "bus/schema/audit.hpp"
#include "services/auth/ledger.hpp"
#include "services/auth/policy_file.hpp"

namespace dstack::auth
{

// Questions about past decisions. Blocking reads of a snapshot, for another thread; nothing is written.

Result<schema::AuthAudit::Reply> find_records(const LedgerSnapshot& ledger, const schema::AuthAudit& question);

/// `policy` null: it is not in a file; what would be now is left out then.
Result<schema::AuthExplain::Reply> explain(const LedgerSnapshot& ledger, const schema::AuthExplain& question,
                                           const std::shared_ptr<const Snapshot>& policy, const std::string& policy_path);

/// `policy` is the one in force; null: there is none in a file, and the question must bring one.
Result<schema::AuthTestPolicy::Reply> test_policy(const LedgerSnapshot& ledger, const schema::AuthTestPolicy& question,
                                                  const std::shared_ptr<const Snapshot>& policy);

/// The allowed value that is most like a refused one.
struct Nearest
{
    std::string value; ///< hex; empty: nothing is allowed there
    std::uint32_t distance = 0;
    std::string what;
};
Nearest nearest_allowed(const Policy& policy, Kind kind, const BootInfo& boot, std::string_view rule, std::uint64_t now_ms);

/// Commands that make the policy allow what these checks refused.
std::vector<std::string> commands_to_allow(const std::vector<schema::Check>& checks, const BootInfo& boot,
                                           const std::string& policy_path);

} // namespace dstack::auth
