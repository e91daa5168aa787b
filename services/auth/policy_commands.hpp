#pragma once
#include "bus/client/client.hpp"
#include "bus/schema/auth.hpp"
#include "services/auth/file_backend.hpp"

namespace dstack::auth
{

/// The bus commands that change the policy file. Each change is a record of the ledger.
class PolicyCommands
{
  public:
    /// `file` null: the policy is not in a file (a chain backend), and every command says so.
    PolicyCommands(PolicyFile& policy, FileBackend* file, Ledger* ledger) : policy_(policy), file_(file), ledger_(ledger)
    {
    }
    void serve(bus::Client& bus);

  private:
    Task<Result<schema::AuthAllowApp::Reply>> allow_app(schema::AuthAllowApp request, bus::CallContext context);
    Task<Result<schema::AuthAllowApp::Reply>> revoke_app(schema::AuthRevokeApp request, bus::CallContext context);
    Task<Result<schema::AuthAllowApp::Reply>> allow_image(schema::AuthAllowImage request, bus::CallContext context);
    Task<Result<schema::AuthAllowApp::Reply>> revoke_image(schema::AuthRevokeImage request, bus::CallContext context);
    Task<Result<schema::AuthAllowApp::Reply>> set_policy(schema::AuthSetPolicy request, bus::CallContext context);
    Task<Result<schema::AuthPolicy::Reply>> show_policy(schema::AuthPolicy request, bus::CallContext context);
    Task<Result<schema::AuthAllowApp::Reply>> change(PolicyFile::Edit edit, Record record);
    Task<Result<schema::AuthAllowApp::Reply>> change(PolicyFile::Edit edit, Record record, PolicyFile::Missing missing);
    PolicyFile& policy_;
    FileBackend* file_;
    Ledger* ledger_; ///< null: nothing is written down
};

} // namespace dstack::auth
