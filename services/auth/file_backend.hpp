#pragma once
#include "services/auth/backend.hpp"
#include "services/auth/ledger.hpp"
#include "services/auth/policy_file.hpp"

namespace dstack::auth
{

/// The policy file as the source of verdicts. Changes of the file by others are written into the ledger.
class FileBackend final : public Backend
{
  public:
    FileBackend(Scope& scope, PolicyFile& policy, Ledger* ledger) : scope_(scope), policy_(policy), ledger_(ledger) {}

    Task<Judgement> decide(Kind kind, const BootInfo& boot) override;
    void look() override { policy_.look(); }
    std::optional<Judgement> decide_now(Kind kind, const BootInfo& boot) override;
    std::shared_ptr<const Ground> ground() const override;
    Task<Info> info() override;
    Task<Health> health() override;
    void append_metrics(std::string& out) const override;

    /// At start: reads the file, and writes down that it is not the one of the newest record, when that is so.
    Task<> begin(bool created);
    /// A change of our own, which is being written down: not to be noted as somebody else's. Empty when that is over.
    void expect_policy(std::string hash) { expected_hash_ = std::move(hash); }

  private:
    Judgement judge(Kind kind, const BootInfo& boot, const std::shared_ptr<const Snapshot>& snapshot) const;
    void look_at(const std::shared_ptr<const Snapshot>& snapshot);
    Task<> note_policy(std::shared_ptr<const Snapshot> snapshot, bool created);
    Scope& scope_;
    PolicyFile& policy_;
    Ledger* ledger_; ///< null: nothing is written down
    bool noting_ = false;
    std::string expected_hash_;
};

} // namespace dstack::auth
