#pragma once
#include "bus/schema/deploy.hpp"
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace dstack::cli
{

/// What the command line says; one struct for all verbs.
struct Options
{
    std::string verb; ///< as in the contract; an alias has become its verb

    bool json = false;
    bool quiet = false;
    bool verbose = false;
    bool no_color = false;
    bool no_input = false;
    bool yes = false;
    bool dry_run = false;
    std::string prefix;           ///< empty: from the environment, or the defaults
    std::string host;             ///< another host's bus, HOST[:PORT]; empty: from the environment, the token's, or this host's
    std::string token_file;       ///< for that host; "-" is stdin; empty: from the environment
    std::uint64_t timeout_ms = 0; ///< 0: the verb's own

    std::string app;     ///< info, logs, stop, start, rm; leases: what is asked about
    std::string name;    ///< deploy
    std::string compose; ///< path; "-" is stdin
    std::vector<schema::PortMapping> ports;
    std::string image;
    std::uint32_t vcpu = 1;
    std::uint32_t memory_mb = 512;
    std::uint32_t disk_gb = 0;
    bool allow = true;
    bool kms = true;
    bool wait = true;

    bool all = false; ///< leases

    bool follow = false;
    std::uint32_t lines = 200;
    bool raw = false;
    std::string from;
    std::string type;
    std::string subject;
    std::string source;
    std::string severity;
    bool force = false;
    std::string shell;

    std::string hash;            ///< allow, revoke: a compose hash
    std::string reason;
    std::uint64_t for_ms = 0;    ///< allow: how long; 0: not said
    std::uint64_t until_ms = 0;  ///< allow: unix time; 0: not said
    bool denied = false;  ///< audit list, export
    bool allowed = false;
    std::string kind;
    std::string since;
    std::uint32_t limit = 20;
    std::string directory; ///< audit verify: of the ledger
    std::string key_file;
    std::string expect;
    std::string boot_info; ///< policy test
    std::uint64_t decision = 0;
    std::uint32_t last = 0;
    std::string with;
    bool with_exit_code = false;
};

/// Help, the version, or a mistake: text and how to leave.
struct Leave
{
    int exit_code = 0;
    std::string out;
    std::string error; ///< without "error: "
    std::string hint;
    bool json = false; ///< --json was given: the mistake is a document
};

std::variant<Options, Leave> parse_options(int argc, const char* const* argv);

/// For `dstack completion bash`.
std::string bash_completion();

} // namespace dstack::cli
