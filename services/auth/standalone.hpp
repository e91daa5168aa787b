#pragma once
#include "services/auth/config.hpp"
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::auth
{

/// What a command line without a configuration file asks for.
struct Plan
{
    enum class Kind
    {
        daemon,       ///< as every daemon: --config and so on
        standalone,   ///< serve `config`: a drop-in for upstream's webhooks, without the mesh
        check_policy, ///< look at `policy_file`
        wrong         ///< `error` says why
    } kind = Kind::daemon;
    Config config{};
    std::string policy_file{};
    bool json = false;
    bool debug = false;
    std::string error{};
};

/// `--standalone --policy FILE --listen ADDR:PORT [--ledger DIR] [--debug]`, `--check-policy FILE [--json]`.
Plan plan_of(const std::vector<std::string_view>& arguments);

} // namespace dstack::auth
