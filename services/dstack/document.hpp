#pragma once
#include "bus/schema/deploy.hpp"
#include "bus/schema/lease.hpp"
#include "shared/base/result.hpp"
#include <string>
#include <string_view>
#include <vector>

namespace dstack::cli
{

// JSON for --json. Upstream's keys keep their names: vmId, appId, composeHash, ports[{vmPort, hostPort, hostAddress}].

/// {"schema":"dstack.<kind>/v1","data":...,"warnings":[...]}
std::string document(std::string_view kind, std::string_view data, const std::vector<std::string>& warnings = {});
/// {"schema":"dstack.error/v1","error":{"code","message","hint","details"}}
std::string error_document(const Error& error);

std::string app_json(const schema::App& app);
std::string apps_json(const std::vector<schema::App>& apps);
/// `uses`: of the whole host, with --all.
std::string leases_json(const std::vector<schema::Lease>& leases, const std::vector<schema::HostUse>& uses, std::string_view database);
std::string explanation_json(const schema::LeaseExplain::Reply& reply);
std::string released_json(std::string_view id, std::uint32_t released);
std::string deploy_json(const schema::DeployCreate::Reply& reply, const schema::App& app);
std::string plan_json(const schema::DeployCreate::Reply& reply);
std::string begun_json(std::string_view app, const schema::OperationBegun& begun, std::string_view state, std::string_view evidence);
std::string log_line_json(std::string_view source, std::string_view time, std::string_view channel, std::uint64_t sequence,
                          std::string_view text);
std::string gap_json(std::uint64_t from, std::uint64_t to, std::string_view reason);
/// What went wrong in an operation, as `details` of an error.
std::string failure_details(std::string_view operation, std::string_view step, bool denied,
                            const std::vector<std::string>& last_lines);
std::string version_json(std::string_view version);

/// "http://127.0.0.1:18000/" of the first TCP port; empty when there is none.
std::string url_of(const std::vector<schema::PortMapping>& ports);

} // namespace dstack::cli
