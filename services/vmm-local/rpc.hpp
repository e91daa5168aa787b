#pragma once
#include <string>
#include <string_view>

namespace dstack::vmm
{

/// "CreateVm" of "/prpc/Teepod.CreateVm": the prefixes `Teepod.` (upstream's) and `Vmm.` (what its documents show) are
/// stripped as often as they come. Empty when the path is not exactly one segment under the mount.
std::string method_of(std::string_view path);

/// JSON or binary mode (A.2). This VMM answers binary mode with a 400 that says so.
bool wants_json(std::string_view http_method, std::string_view query, std::string_view content_type);

/// Every RPC error is HTTP 400 with this body (A.4).
std::string error_body(std::string_view message);

} // namespace dstack::vmm
