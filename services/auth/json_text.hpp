#pragma once
#include <string>
#include <string_view>

namespace dstack::auth
{

/// A JSON string literal; bytes that are not printable ASCII become \u00XX (the inputs here are ASCII by their checks).
void append_json_string(std::string& out, std::string_view text);

/// The same without the quotes, into room for six bytes for each of the text; gives the end.
char* write_escaped(char* out, std::string_view text);

/// For reasons that others read: at most 300 characters, what is not printable ASCII becomes '?'.
std::string printable(std::string_view text);

} // namespace dstack::auth
