#pragma once
#include "shared/base/result.hpp"
#include <string>
#include <string_view>
#include <vector>

namespace dstack::up
{

/// The flags that every verb takes, before or after it.
struct Global
{
    bool json = false;
    bool quiet = false;
    bool no_input = false;
    bool yes = false;
    bool dry_run = false;
    bool verbose = false;
    long timeout_s = 0; ///< 0: the verb's own
    std::string prefix{};
};

/// Exit codes of the command line contract (docs/reference/exit-codes.md).
enum Exit
{
    exit_ok = 0,
    exit_generic = 1,
    exit_usage = 2,
    exit_not_found = 3,
    exit_permission = 4,
    exit_conflict = 5,
    exit_incomplete = 6,
    exit_precondition = 7,
    exit_timeout = 8,
    exit_unhealthy = 10,
};
int exit_code_of(Errc code);

/// Data on stdout: the one JSON document {"schema":"dstack.<kind>/v1","data":...,"warnings":[...]}.
void print_document(std::string_view kind, std::string_view data_json, const std::vector<std::string>& warnings = {});
/// An error: on stderr as text, or with --json as the one document on stdout. Gives the exit code.
int print_error(const Global& global, const Error& error);
/// Progress and hints, on stderr; not with --quiet.
void say(const Global& global, std::string_view text);
/// Always on stderr: something the operator should know.
void warn(std::string_view text);

/// Asks on the terminal. failed_precondition when there is none or --no-input was given, and --yes was not.
Result<bool> confirm(const Global& global, std::string_view question);

} // namespace dstack::up
