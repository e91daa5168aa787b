#pragma once
#include <concepts>
#include <initializer_list>
#include <string>
#include <string_view>

namespace dstack::log
{

/// One typed fact of a log line. Never put a secret in one.
struct Field
{
    std::string_view key;
    std::string value;
    Field(std::string_view k, std::string_view v) : key(k), value(v) {}
    Field(std::string_view k, const char* v) : key(k), value(v) {}
    Field(std::string_view k, bool v) : key(k), value(v ? "true" : "false") {}
    template <std::integral T>
        requires(!std::same_as<T, bool>)
    Field(std::string_view k, T v) : key(k), value(std::to_string(v))
    {
    }
};

enum class Level { debug, info, warn, error };

/// Once per process. Under journald (JOURNAL_STREAM set) lines carry a `<N>` priority prefix and no time or colour;
/// elsewhere an RFC 3339 UTC time. Everything goes to stderr.
void init(std::string_view program, Level level);

/// A constant lower-case message plus typed fields, as `message key=value key="quoted value"`.
/// Control bytes in values are escaped: a guest's text cannot drive the operator's terminal.
std::string line(std::string_view message, std::initializer_list<Field> fields);

void debug(std::string_view message, std::initializer_list<Field> fields = {});
void info(std::string_view message, std::initializer_list<Field> fields = {});
void warn(std::string_view message, std::initializer_list<Field> fields = {});
void error(std::string_view message, std::initializer_list<Field> fields = {});

} // namespace dstack::log
