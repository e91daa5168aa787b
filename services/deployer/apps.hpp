#pragma once
#include "services/deployer/model.hpp"
#include "shared/base/result.hpp"
#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace dstack::deployer
{

// Decisions about apps that exist.

/// The app that `word` means: its name, app id or VM id, or an unambiguous beginning (4 characters or more) of an id.
Result<std::string> resolve(const std::map<std::string, AppFacts>& apps, std::string_view word);

/// What a create means when an app of its name exists.
struct NameVerdict
{
    bool already = false;        ///< the same app; nothing to do
    std::optional<Error> error{}; ///< the name is taken
};
/// `wanted` is what the request would make. `running`: the operation that works on the existing app, if any.
NameVerdict judge_name(const AppFacts& existing, const AppFacts& wanted, const Operation* running);

/// The last answer of an app's port.
struct Probe
{
    std::string evidence; ///< empty: it did not answer
    std::string error;
    std::uint64_t at_ms = 0;
};

/// What is known of an app's VM, put into one state with its evidence.
struct Look
{
    bool vmm_answered = false;
    std::string vmm_error;
    std::optional<VmSight> vm;
    std::string exit_reason;
    std::optional<Probe> probe;
    std::string operation_kind; ///< of the operation in progress; empty: none
    std::uint64_t now_ms = 0;
};
AppSight judge_sight(const AppFacts& app, const Look& look);

schema::App to_app(const AppFacts& facts, const AppSight& sight, std::string_view operation);

} // namespace dstack::deployer
