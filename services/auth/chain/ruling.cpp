#include "services/auth/chain/ruling.hpp"
#include "services/auth/json_text.hpp"

namespace dstack::auth::chain
{

namespace
{

constexpr std::size_t max_reason = 480; // the KMS cuts at 512

std::string cut(std::string text)
{
    if (text.size() > max_reason) { text.replace(max_reason - 3, std::string::npos, "..."); }
    return text;
}

std::string block_text(const Answer& answer)
{
    return "block " + std::to_string(answer.block.number) + " (0x" + answer.block.hash.substr(0, 16) + "...)";
}

std::string_view function_of(Kind kind) { return kind == Kind::app ? "isAppAllowed" : "isKmsAllowed"; }

std::string said_by(const Finding& finding, const Knowledge& known)
{
    std::string out;
    for (const Finding::Said& said : finding.answers)
    {
        out += (out.empty() ? "" : ", ") + known.endpoints[said.endpoint].label;
    }
    return out;
}

std::string say(const Answer& answer)
{
    return answer.allowed ? "allowed, gateway " + (answer.gateway_app_id.empty() ? "none" : plain(answer.gateway_app_id, 48))
                          : "denied, " + answer.reason;
}

std::string failure_text(const Finding::Failed& failed, const Knowledge& known)
{
    std::string out = known.endpoints[failed.endpoint].label + ": " + std::string{to_string(failed.failure.fault)};
    return failed.failure.detail.empty() ? out : out + " (" + failed.failure.detail + ")";
}

} // namespace

std::string cause_of(const Finding& finding, const Knowledge& known)
{
    if (finding.kind == Finding::Kind::disagreed)
    {
        std::string out = "rpc endpoints disagree: ";
        for (const Finding::Said& said : finding.answers)
        {
            out += (&said == &finding.answers.front() ? "" : "; ") + known.endpoints[said.endpoint].label + " says " +
                   say(said.answer) + " at " + block_text(said.answer);
        }
        return cut(std::move(out));
    }
    if (finding.kind == Finding::Kind::wrong_chain)
    {
        for (const Finding::Failed& failed : finding.failures)
        {
            if (failed.failure.fault == Fault::wrong_chain) { return cut(failure_text(failed, known)); }
        }
    }
    if (!finding.note.empty()) { return finding.note; }
    std::string out = finding.answers.empty() ? "no rpc endpoint answered"
                                              : std::to_string(finding.answers.size()) + " of the " +
                                                    std::to_string(known.settings.quorum) + " rpc endpoints of the quorum answered";
    std::string separator = ": ";
    std::vector<bool> told(known.endpoints.size(), false);
    for (const Finding::Said& said : finding.answers) { told[said.endpoint] = true; }
    for (const Finding::Failed& failed : finding.failures)
    {
        out += separator + failure_text(failed, known);
        separator = "; ";
        told[failed.endpoint] = true;
    }
    for (std::size_t i = 0; i < known.endpoints.size(); ++i)
    {
        if (told[i]) { continue; }
        out += separator + known.endpoints[i].label + ": " + describe(known.health[i], known.now);
        separator = "; ";
    }
    return cut(std::move(out));
}

Verdict verdict_of(Kind kind, const Finding& finding, const Knowledge& known)
{
    // A denial needs no quorum: what one endpoint denies cannot become allowed by others.
    const bool denied = finding.kind == Finding::Kind::unavailable && !finding.answers.empty() && !finding.answers.front().answer.allowed;
    if (finding.kind != Finding::Kind::answered && !denied)
    {
        Verdict out = deny("chain", cause_of(finding, known));
        out.rules.push_back({"chain", false, std::to_string(known.settings.quorum) + " rpc endpoint(s) that answer", out.reason});
        return out;
    }
    const Answer& answer = finding.answers.front().answer;
    Verdict out;
    out.allowed = answer.allowed;
    out.rule = "contract";
    out.reason = answer.allowed ? std::string{} : answer.reason;
    RuleResult rule;
    rule.rule = "contract";
    rule.pass = answer.allowed;
    rule.expected = std::string{function_of(kind)} + " of 0x" + known.settings.contract + " on chain " +
                    std::to_string(known.settings.chain_id);
    rule.got = (answer.allowed ? "true" : answer.reverted ? "a revert" : "false") + std::string{" at block "} +
               std::to_string(answer.block.number) + " 0x" + answer.block.hash + ", from " + said_by(finding, known);
    if (!answer.allowed) { out.reason = cut(out.reason + " (rule contract: " + rule.expected + " at " + block_text(answer) +
                         "; to allow it: change the contract, and wait until that is final)"); }
    out.rules.push_back(std::move(rule));
    return out;
}

std::string info_body(const InfoValues& values, std::string_view cause, const Knowledge& known)
{
    const auto age = std::chrono::duration_cast<std::chrono::seconds>(known.now - values.at).count();
    const Endpoint& first = known.endpoints.front();
    std::string out = R"({"status":"ok","kmsContractAddr":)";
    append_json_string(out, "0x" + known.settings.contract);
    out += R"(,"ethRpcUrl":)";
    append_json_string(out, (first.tls ? "https://" : "http://") + first.authority);
    out += R"(,"gatewayAppId":)";
    append_json_string(out, values.answer.gateway_app_id);
    out += R"(,"chainId":)" + std::to_string(known.settings.chain_id);
    for (const std::string_view key : {"appAuthImplementation", "appImplementation"})
    {
        out += ",\"" + std::string{key} + "\":";
        append_json_string(out, "0x" + values.answer.implementation);
    }
    out += R"(,"blockNumber":)" + std::to_string(values.answer.block.number) + R"(,"ageSeconds":)" + std::to_string(age);
    if (!cause.empty())
    {
        out += R"(,"stale":true,"cause":)";
        append_json_string(out, cause);
    }
    return out + "}";
}

std::string info_error(std::string_view cause)
{
    std::string out = R"({"status":"error","message":)";
    append_json_string(out, cause);
    return out + "}";
}

void append_metrics(std::string& out, const Knowledge& known, const std::optional<InfoValues>& values)
{
    const auto family = [&](std::string_view name, std::string_view type, std::string_view help, auto value)
    {
        const std::string full = "dstack_auth_chain_" + std::string{name};
        out += "# TYPE " + full + " " + std::string{type} + "\n# HELP " + full + " " + std::string{help} + "\n";
        for (std::size_t i = 0; i < known.endpoints.size(); ++i)
        {
            out += full + (type == "counter" ? "_total" : "") + "{endpoint=\"" + known.endpoints[i].label + "\"} " +
                   std::to_string(value(known.health[i])) + "\n";
        }
    };
    family("endpoint_usable", "gauge", "0: it rests after failures.",
           [&](const EndpointHealth& health) { return resting(health, known.now) ? 0 : 1; });
    family("endpoint_answers", "counter", "Answers that could be used.", [](const EndpointHealth& health) { return health.answers; });
    family("endpoint_failures", "counter", "Questions without a usable answer.", [](const EndpointHealth& health) { return health.failed; });
    if (!values) { return; }
    const auto age = std::chrono::duration_cast<std::chrono::seconds>(known.now - values->at).count();
    out += "# TYPE dstack_auth_chain_block gauge\n# HELP dstack_auth_chain_block The newest block that was judged by.\n"
           "dstack_auth_chain_block " +
           std::to_string(values->answer.block.number) +
           "\n# TYPE dstack_auth_chain_answer_age_seconds gauge\n# UNIT dstack_auth_chain_answer_age_seconds seconds\n"
           "# HELP dstack_auth_chain_answer_age_seconds Since the newest usable answer.\ndstack_auth_chain_answer_age_seconds " +
           std::to_string(age) + "\n";
}

} // namespace dstack::auth::chain
