#pragma once
#include "bus/client/client.hpp"
#include "bus/schema/audit.hpp"
#include "bus/schema/auth.hpp"
#include "services/auth/ledger.hpp"
#include "services/auth/policy_file.hpp"
#include "shared/runtime/daemon.hpp"

namespace dstack::auth
{

/// The bus commands that read the ledger and change nothing, and the event that tells how it fares.
class AuditCommands
{
  public:
    /// `policy` and `ledger` may be null: the policy is not in a file, there is no ledger.
    AuditCommands(Loop& loop, Ledger* ledger, PolicyFile* policy, Backend& backend)
        : loop_(loop), ledger_(ledger), policy_(policy), backend_(backend)
    {
    }
    void serve(bus::Client& bus);
    /// Says how the ledger fares when that changes, also to the supervisor and on the bus (which may be null); returns when
    /// it is damaged.
    Task<> watch(Daemon& daemon, bus::Client* bus);

  private:
    Task<Result<schema::AuthAudit::Reply>> audit(schema::AuthAudit request, bus::CallContext context);
    Task<Result<schema::AuthExplain::Reply>> why(schema::AuthExplain request, bus::CallContext context);
    Task<Result<schema::AuthTestPolicy::Reply>> test(schema::AuthTestPolicy request, bus::CallContext context);
    Task<Result<schema::AuthDecisions::Reply>> decisions(schema::AuthDecisions request, bus::CallContext context);
    Task<std::shared_ptr<const Snapshot>> policy_now();
    Loop& loop_;
    Ledger* ledger_;
    PolicyFile* policy_;
    Backend& backend_;
};

} // namespace dstack::auth
