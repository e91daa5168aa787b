#pragma once
#include "shared/base/result.hpp"
#include <string>
#include <string_view>

namespace dstack::guest
{

/// The JSON of a Notify request (C.4). The host drops bodies over 4096 bytes without a word, so the payload is cut (at
/// a character, with
/// "..." in the end) until it fits.
std::string notify_body(std::string_view event, std::string_view payload);

/// The `error` of a prpc error body (A.4), or the start of the body when it has none.
std::string rpc_error(std::string_view body);

/// "what (next step)": how an error is told in one line.
std::string one_line(const Error& error);

} // namespace dstack::guest
