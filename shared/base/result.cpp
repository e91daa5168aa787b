#include "shared/base/result.hpp"
#include <array>
#include <cctype>
#include <cerrno>
#include <cstring>

namespace dstack
{

namespace
{
constexpr std::array<std::pair<Errc, std::string_view>, 13> names{{
    {Errc::invalid_argument, "invalid_argument"},
    {Errc::not_found, "not_found"},
    {Errc::already_exists, "already_exists"},
    {Errc::permission_denied, "permission_denied"},
    {Errc::unauthenticated, "unauthenticated"},
    {Errc::unavailable, "unavailable"},
    {Errc::deadline_exceeded, "deadline_exceeded"},
    {Errc::failed_precondition, "failed_precondition"},
    {Errc::resource_exhausted, "resource_exhausted"},
    {Errc::aborted, "aborted"},
    {Errc::data_loss, "data_loss"},
    {Errc::cancelled, "cancelled"},
    {Errc::internal, "internal"},
}};
} // namespace

std::string_view to_string(Errc code)
{
    for (const auto& [value, name] : names)
    {
        if (value == code) { return name; }
    }
    return "internal";
}

Errc errc_from_string(std::string_view name)
{
    for (const auto& [value, known] : names)
    {
        if (known == name) { return value; }
    }
    return Errc::internal;
}

Errc errc_from_errno(int error_number)
{
    switch (error_number)
    {
    case ENOENT:
    case ESRCH: return Errc::not_found;
    case EEXIST: return Errc::already_exists;
    case EACCES:
    case EPERM:
    case EROFS: return Errc::permission_denied;
    case EINVAL:
    case ENAMETOOLONG:
    case ENOTDIR:
    case EISDIR: return Errc::invalid_argument;
    case ENOSPC:
    case EDQUOT:
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case EFBIG: return Errc::resource_exhausted;
    case ECONNREFUSED:
    case ECONNRESET:
    case EPIPE:
    case ENETUNREACH:
    case EHOSTUNREACH:
    case EAGAIN: return Errc::unavailable;
    case ETIMEDOUT: return Errc::deadline_exceeded;
    case EADDRINUSE:
    case EBUSY: return Errc::failed_precondition;
    case EIO: return Errc::data_loss;
    default: return Errc::internal;
    }
}

Error errno_error(std::string_view what, int error_number)
{
    std::array<char, 128> buffer{};
    const char* text = strerror_r(error_number, buffer.data(), buffer.size()); // GNU variant
    std::string reason{text};
    if (!reason.empty())
    {
        reason[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(reason[0])));
    }
    const bool full = error_number == ENOSPC || error_number == EDQUOT;
    return Error{errc_from_errno(error_number), std::string{what} + ": " + reason, full ? "make room on that disk, then try again: `df -h`" : "", {}};
}

} // namespace dstack
