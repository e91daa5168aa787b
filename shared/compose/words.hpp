#pragma once
#include "shared/base/result.hpp"
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::compose
{

/// A command line as a shell would split it: blanks separate, quotes and backslashes group; nothing is expanded.
Result<std::vector<std::string>> split_words(std::string_view line);

using Variables = std::map<std::string, std::string, std::less<>>;

/// Replaces $NAME, ${NAME}, ${NAME-default}, ${NAME:-default}, ${NAME:?message}; $$ is one dollar sign. A variable
/// that is not set and has no default is an error, because an empty text in its place is never what was meant.
Result<std::string> interpolate(std::string_view text, const Variables& variables);

} // namespace dstack::compose
