#pragma once
#include "services/auth/policy.hpp"

namespace dstack::auth
{

/// One check of a decision. `rule` is one of the words of the schema's Decision::rule.
struct RuleResult
{
    std::string_view rule;
    bool pass = false;
    std::string expected;
    std::string got;
};

struct Verdict
{
    bool allowed = false;
    std::string rule; ///< the rule that decided: the first that failed, or the last when all passed
    std::string
        reason; ///< empty when allowed; else auth-simple's text, then expected, got and what would allow it. ASCII.
    std::vector<RuleResult> rules; ///< all that could be checked, in auth-simple's order
};

/// The checks of auth-simple in its order (dstack-protocol.md, E.6), except that an empty list denies and an entry may
/// end; `now_ms` is the unix time.
Verdict decide(Kind kind, const BootInfo& boot, const Policy& policy, std::uint64_t now_ms);
/// At this moment.
Verdict decide(Kind kind, const BootInfo& boot, const Policy& policy);

/// A denial without a boot to judge: rule "policy" (missing or not valid), "request" (no BootInfo) or "ledger".
Verdict deny(std::string_view rule, std::string reason);

/// {"isAllowed":...,"gatewayAppId":...,"reason":...}: the three keys that the KMS requires.
std::string answer_body(const Verdict& verdict, std::string_view gateway_app_id);
/// The answer to GET /; the KMS reads it for GetMeta (E.4).
std::string info_body(const Policy& policy);

} // namespace dstack::auth
