#pragma once
#include "services/dstack/session.hpp"

namespace dstack::cli
{

// Each is one verb: does it, says it, and gives the exit code.
Task<int> deploy(Session& session);
Task<int> list_apps(Session& session);
Task<int> app_info(Session& session);
Task<int> change_app(Session& session); ///< stop, start, rm
Task<int> change_policy(Session& session); ///< allow, revoke
Task<int> show_leases(Session& session);
Task<int> explain_lease(Session& session);
Task<int> release_lease(Session& session);
Task<int> show_events(Session& session);
Task<int> show_logs(Session& session);
Task<int> show_trace(Session& session);
Task<int> bus_services(Session& session);
Task<int> bus_top(Session& session);
Task<int> audit_list(Session& session);
Task<int> audit_show(Session& session);
Task<int> audit_export(Session& session);
Task<int> audit_verify(Session& session); ///< without the bus
Task<int> show_why(Session& session);
Task<int> policy_test(Session& session);

} // namespace dstack::cli
