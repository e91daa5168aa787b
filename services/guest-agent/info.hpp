#pragma once
#include "services/guest-agent/boot_plan.hpp"
#include "shared/http/message.hpp"

namespace dstack::guest
{

/// GET or POST /prpc/Info and /prpc/Version of the external port (dstack-protocol.md F), with the `Worker.` prefix or
/// without. What this guest does not know is an empty text, never an invention. `plan` is null while the boot has not
/// come that far.
http::Response answer_info(const http::Request& request, const BootPlan* plan);

} // namespace dstack::guest
