#pragma once
#include "services/auth/ledger.hpp"
#include "services/auth/policy_file.hpp"
#include "shared/http/message.hpp"

namespace dstack::auth
{

/// The HTTP side: one request in, one decision written down, one answer out.
class Webhook
{
  public:
    Webhook(Scope& scope, PolicyFile& policy, Ledger& ledger) : scope_(scope), policy_(policy), ledger_(ledger) {}
    Task<http::Response> answer(http::Request request);
    /// Writes down that the policy file is not the one of the newest record, when that is so.
    Task<> note_policy(std::shared_ptr<const Snapshot> snapshot, bool created = false);
    /// A change of our own, which is being written down: not to be noted as somebody else's. Empty when that failed.
    void expect_policy(std::string hash) { expected_hash_ = std::move(hash); }

  private:
    Task<http::Response> decide_boot(Kind kind, http::Request request);
    Task<http::Response> tell_info();
    Task<http::Response> tell_health();
    void look_at(std::shared_ptr<const Snapshot> snapshot);
    Scope& scope_;
    PolicyFile& policy_;
    Ledger& ledger_;
    BootInfoReader reader_;
    bool noting_ = false;
    std::string expected_hash_;
};

} // namespace dstack::auth
