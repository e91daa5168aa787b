#include "services/dstack/exit_code.hpp"

namespace dstack::cli
{

int exit_code(Errc code)
{
    switch (code)
    {
    case Errc::invalid_argument: return exit_usage;
    case Errc::not_found:
    case Errc::unavailable: return exit_not_found;
    case Errc::permission_denied:
    case Errc::unauthenticated: return exit_permission;
    case Errc::already_exists:
    case Errc::aborted: return exit_conflict;
    case Errc::data_loss: return exit_incomplete;
    case Errc::failed_precondition:
    case Errc::resource_exhausted: return exit_precondition;
    case Errc::deadline_exceeded: return exit_timeout;
    case Errc::cancelled:
    case Errc::internal: return exit_generic;
    }
    return exit_generic;
}

int exit_code_of_operation(Errc code, bool denied, std::string_view step)
{
    if (denied) { return exit_denied; }
    const bool guest = step == "boot" || step == "probe";
    if (guest && code == Errc::failed_precondition) { return exit_unhealthy; }
    return exit_code(code);
}

} // namespace dstack::cli
