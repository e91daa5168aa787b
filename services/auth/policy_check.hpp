#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::auth
{

/// A place of a policy file where upstream's reading of it and ours differ, or that an operator should look at.
struct Finding
{
    bool denies = false; ///< upstream allowed anything here ("empty means any"); here it is denied until `add` is written
    std::string place;   ///< "kms", "apps.<id>"; empty: the top of the file
    std::size_t line = 0;
    std::string message;
    std::string add; ///< the member to add to that place; empty: nothing to add
};

struct PolicyReport
{
    std::string error; ///< why the file is no policy at all; empty: it is one
    std::string hash;  ///< SHA-256 of the text, hex
    std::size_t apps = 0;
    std::vector<Finding> findings{}; ///< in the order of the file
};

/// For `dstackup policy check`: what an operator who comes from upstream has to know about a file. `now_ms`: unix time.
PolicyReport check_policy(std::string_view text, std::uint64_t now_ms);

/// As lines for people, and as JSON: {"valid","error","policyHash","apps","findings":[{"denies","place","line","message","add"}]}.
std::string report_text(const PolicyReport& report, std::string_view file);
std::string report_json(const PolicyReport& report);

} // namespace dstack::auth
