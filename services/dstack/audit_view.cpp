#include "services/dstack/audit_view.hpp"
#include "services/dstack/text.hpp"
#include "shared/base/time.hpp"
#include "shared/ledger/chain.hpp"
#include "shared/ledger/format.hpp"
#include <algorithm>
#include <nlohmann/json.hpp>

namespace dstack::cli
{

namespace
{
using json = nlohmann::ordered_json;

json parse(std::string_view text)
{
    json value = json::parse(text, nullptr, false);
    return value.is_discarded() ? json() : value;
}

std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

std::string text_of(const json& object, const char* key)
{
    if (!object.is_object()) { return {}; }
    const auto found = object.find(key);
    const auto* text = found == object.end() ? nullptr : found->get_ptr<const std::string*>();
    return text == nullptr ? std::string{} : *text;
}

std::string string_at(const json& array, std::size_t index)
{
    const auto* text = index < array.size() ? array[index].get_ptr<const std::string*>() : nullptr;
    return text == nullptr ? std::string{} : *text;
}

std::vector<schema::Check> checks_of(const json& record, const json& boot)
{
    std::vector<schema::Check> out;
    const auto rules = record.find("rules");
    if (rules == record.end() || !rules->is_array()) { return out; }
    for (const json& rule : *rules)
    {
        if (!rule.is_array()) { continue; }
        schema::Check check;
        check.rule = string_at(rule, 0);
        const auto* pass = rule.size() > 1 ? rule[1].get_ptr<const json::boolean_t*>() : nullptr;
        check.pass = pass != nullptr && *pass;
        check.got = rule.size() > 3 ? string_at(rule, 3) : text_of(boot, std::string{ledger::boot_key_of(check.rule)}.c_str());
        check.expected = rule.size() > 2 ? string_at(rule, 2) : check.got;
        out.push_back(std::move(check));
    }
    return out;
}

std::string result_of(const RecordView& record)
{
    if (record.decision) { return record.allowed ? "allowed" : "DENIED"; }
    return record.kind == "policy" ? record.change : "-";
}

std::string dash(const std::string& text) { return text.empty() ? "-" : printable(text); }
std::string short_hex(const std::string& text) { return text.empty() ? "-" : printable(text.substr(0, 12)); }

std::string about(const RecordView& record)
{
    if (record.decision) { return record.allowed ? "" : record.rule; }
    return record.by.empty() ? record.reason : "by " + record.by + (record.reason.empty() ? "" : ": " + record.reason);
}

/// One line of a chain of causes.
std::string cause_text(const RecordView& record)
{
    std::string out = "  " + std::to_string(record.sequence) + "  " + printable(record.time) + "  ";
    if (record.decision)
    {
        return out + "decision: " + (record.allowed ? "allowed" : "DENIED by the rule " + printable(record.rule)) + "\n";
    }
    out += "policy: " + dash(record.change);
    if (!record.compose_hash.empty()) { out += " " + short_hex(record.compose_hash); }
    if (!record.by.empty()) { out += " by " + printable(record.by); }
    if (!record.reason.empty()) { out += " (" + printable(record.reason) + ")"; }
    return out + "\n";
}

std::string checks_text(const std::vector<schema::Check>& checks)
{
    std::vector<std::vector<std::string>> rows;
    for (const auto& check : checks)
    {
        const bool same = check.expected == check.got;
        rows.push_back({check.pass ? "  ok" : "  FAIL", printable(check.rule),
                        check.pass ? dash(check.got) + (same ? "" : " (" + printable(check.expected) + ")") : "expected " + dash(check.expected) + "; got " + dash(check.got)});
    }
    return table(rows);
}

json checks_json(const std::vector<schema::Check>& checks)
{
    json out = json::array();
    for (const auto& check : checks)
    {
        out.push_back({{"rule", check.rule}, {"pass", check.pass}, {"expected", check.expected}, {"got", check.got}});
    }
    return out;
}

json parsed_or_null(const std::string& line) { return line.empty() ? json() : parse(line); }
} // namespace

RecordView view_record(std::string_view line)
{
    const json record = parse(line);
    RecordView out;
    if (!record.is_object()) { return out; }
    const auto sequence = record.find("seq");
    const auto* number = sequence == record.end() ? nullptr : sequence->get_ptr<const json::number_unsigned_t*>();
    out.sequence = number == nullptr ? 0 : *number;
    out.time = text_of(record, "time");
    out.kind = text_of(record, "kind");
    out.decision = out.kind == "app" || out.kind == "kms";
    const auto allowed = record.find("allowed");
    const auto* flag = allowed == record.end() ? nullptr : allowed->get_ptr<const json::boolean_t*>();
    out.allowed = flag != nullptr && *flag;
    out.rule = text_of(record, "rule");
    out.reason = text_of(record, "reason");
    const auto boot = record.find("boot");
    const json what = boot == record.end() ? record : *boot;
    out.app_id = text_of(what, boot == record.end() ? "app_id" : "appId");
    out.compose_hash = text_of(what, boot == record.end() ? "compose_hash" : "composeHash");
    out.instance_id = text_of(what, "instanceId");
    out.change = text_of(record, "change");
    out.by = text_of(record, "by");
    out.policy_hash = text_of(record, "policy");
    out.agent = text_of(record, "agent");
    out.checks = checks_of(record, what);
    return out;
}

std::string records_text(const std::vector<std::string>& lines)
{
    std::vector<std::vector<std::string>> rows{{"RECORD", "TIME", "KIND", "RESULT", "APP", "COMPOSE", "WHY"}};
    for (const std::string& line : lines)
    {
        const RecordView record = view_record(line);
        rows.push_back({std::to_string(record.sequence), printable(record.time), dash(record.kind), result_of(record), short_hex(record.app_id),
                        short_hex(record.compose_hash), dash(about(record))});
    }
    return table(rows);
}

std::string records_json(const std::vector<std::string>& lines, std::uint64_t next)
{
    json list = json::array();
    for (const std::string& line : lines) { list.push_back(parse(line)); }
    return dump(json{{"records", std::move(list)}, {"next", next}});
}

std::string record_text(std::string_view line)
{
    const RecordView record = view_record(line);
    const auto hash = ledger::hash_line(line);
    std::vector<std::vector<std::string>> rows{{"record:", std::to_string(record.sequence)},
                                               {"time:", printable(record.time)},
                                               {"kind:", dash(record.kind)},
                                               {"result:", result_of(record)}};
    if (record.decision) { rows.push_back({"rule:", dash(record.rule)}); }
    if (!record.reason.empty()) { rows.push_back({"reason:", printable(record.reason)}); }
    if (!record.by.empty()) { rows.push_back({"by:", printable(record.by)}); }
    if (!record.agent.empty()) { rows.push_back({"asked by:", printable(record.agent)}); }
    const json whole = parse(line);
    const auto boot = whole.is_object() ? whole.find("boot") : whole.end();
    if (whole.is_object() && boot != whole.end())
    {
        for (const auto& [key, value] : boot->items()) { rows.push_back({key + ":", value.is_string() ? dash(value.get<std::string>()) : printable(dump(value))}); }
    }
    else
    {
        if (!record.app_id.empty()) { rows.push_back({"app id:", printable(record.app_id)}); }
        if (!record.compose_hash.empty()) { rows.push_back({"compose hash:", printable(record.compose_hash)}); }
    }
    rows.push_back({"policy:", dash(record.policy_hash)});
    rows.push_back({"hash:", std::string{ledger::view(hash)}});
    return table(rows) + (record.checks.empty() ? "" : "checks:\n" + checks_text(record.checks));
}

std::string record_json(std::string_view line)
{
    json out = parse(line);
    const auto hash = ledger::hash_line(line);
    if (out.is_object())
    {
        out["hash"] = std::string{ledger::view(hash)};
        const RecordView record = view_record(line);
        if (record.decision) { out["checks"] = checks_json(record.checks); }
    }
    return dump(out);
}

std::string why_text(const schema::AuthExplain::Reply& reply, std::string_view app_name)
{
    const RecordView decision = view_record(reply.record);
    std::string out = "decision " + std::to_string(decision.sequence) + ": " + (decision.allowed ? "allowed" : "DENIED") + "\n";
    std::vector<std::vector<std::string>> rows;
    if (!app_name.empty()) { rows.push_back({"  app:", printable(app_name)}); }
    rows.push_back({"  app id:", dash(decision.app_id)});
    rows.push_back({"  compose hash:", dash(decision.compose_hash)});
    if (!decision.instance_id.empty()) { rows.push_back({"  instance id:", printable(decision.instance_id)}); }
    rows.push_back({"  asked by:", dash(decision.agent)});
    if (!decision.reason.empty()) { rows.push_back({"  the KMS was told:", printable(decision.reason)}); }
    out += table(rows);
    if (!reply.checks.empty()) { out += "checks:\n" + checks_text(reply.checks); }
    out += "chain:\n";
    std::vector<std::string> causes;
    for (const std::string* line : {&reply.allowed_by, &reply.revoked_by, &reply.policy_record})
    {
        if (!line->empty() && std::find(causes.begin(), causes.end(), *line) == causes.end()) { causes.push_back(*line); }
    }
    std::sort(causes.begin(), causes.end(), [](const std::string& a, const std::string& b) { return view_record(a).sequence < view_record(b).sequence; });
    for (const std::string& line : causes)
    {
        const RecordView record = view_record(line);
        std::string text = cause_text(record);
        if (line == reply.policy_record) { text.insert(text.size() - 1, ": the policy " + short_hex(record.policy_hash) + " that decided"); }
        out += text;
    }
    if (!reply.complete && reply.policy_record.empty()) { out += "  (what is older was not searched: the ledger is long)\n"; }
    out += cause_text(decision);
    const std::string policy = reply.same_policy ? "the policy is still the same" : "the policy has changed since";
    if (reply.rule_now.empty()) { return out; }
    if (reply.allowed_now) { return out + "now: " + policy + (decision.allowed ? ", and the same boot is allowed\n" : "; the same boot would be allowed: start it again\n"); }
    out += "now: " + policy + "; the same boot would be denied by the rule " + printable(reply.rule_now) + "\n";
    if (!reply.nearest.empty())
    {
        out += "nearest allowed: " + printable(reply.nearest) + "\n  " + printable(reply.nearest_is) + "; it differs in " +
               std::to_string(reply.nearest_distance) + " of " + std::to_string(reply.nearest.size()) + " characters\n";
    }
    else { out += "nearest allowed: nothing is allowed there\n"; }
    if (!reply.commands.empty()) { out += "to allow it:\n"; }
    for (const std::string& command : reply.commands) { out += "  " + printable(command) + "\n"; }
    return out;
}

std::string why_json(const schema::AuthExplain::Reply& reply, std::string_view app_name)
{
    json nearest;
    if (!reply.nearest.empty()) { nearest = json{{"value", reply.nearest}, {"distance", reply.nearest_distance}, {"is", reply.nearest_is}}; }
    return dump(json{{"app", app_name},
                     {"decision", parse(reply.record)},
                     {"checks", checks_json(reply.checks)},
                     {"policyRecord", parsed_or_null(reply.policy_record)},
                     {"allowedBy", parsed_or_null(reply.allowed_by)},
                     {"revokedBy", parsed_or_null(reply.revoked_by)},
                     {"now", {{"samePolicy", reply.same_policy}, {"allowed", reply.allowed_now}, {"rule", reply.rule_now}, {"reason", reply.reason_now}}},
                     {"nearest", std::move(nearest)},
                     {"commands", reply.commands},
                     {"complete", reply.complete}});
}

std::string test_text(const schema::AuthTestPolicy::Reply& reply, bool one_boot)
{
    const auto word = [](bool allowed) { return std::string{allowed ? "allowed" : "DENIED"}; };
    if (one_boot && !reply.results.empty())
    {
        const auto& one = reply.results.front();
        std::string out = word(one.now) + (one.now ? "" : " by the rule " + printable(one.rule)) + "\n";
        if (one.was != one.now) { out = "FLIPS: was " + word(one.was) + ", would be " + out; }
        if (!one.reason.empty()) { out += "  the KMS would be told: " + printable(one.reason) + "\n"; }
        return out + (one.checks.empty() ? "" : "checks:\n" + checks_text(one.checks));
    }
    std::string out;
    if (!reply.results.empty())
    {
        std::vector<std::vector<std::string>> rows{{"DECISION", "TIME", "KIND", "WAS", "WOULD BE", "RULE", "APP", "COMPOSE"}};
        for (const auto& one : reply.results)
        {
            rows.push_back({std::to_string(one.sequence), printable(one.time), dash(one.kind), word(one.was), word(one.now), one.now ? "-" : dash(one.rule),
                            short_hex(one.app_id), short_hex(one.compose_hash)});
        }
        out = table(rows);
    }
    const std::uint64_t flips = reply.to_allowed + reply.to_denied;
    if (flips > reply.results.size()) { out += "... and " + std::to_string(flips - reply.results.size()) + " more\n"; }
    out += std::to_string(reply.tested) + " boots tested: " + std::to_string(reply.to_allowed) + " would become allowed, " + std::to_string(reply.to_denied) +
           " would become denied\n";
    return out;
}

std::string test_json(const schema::AuthTestPolicy::Reply& reply)
{
    json list = json::array();
    for (const auto& one : reply.results)
    {
        json item{{"decision", one.sequence}, {"time", one.time}, {"kind", one.kind}, {"appId", one.app_id}, {"composeHash", one.compose_hash},
                  {"was", one.was}, {"now", one.now}, {"rule", one.rule}, {"reason", one.reason}};
        if (!one.checks.empty()) { item["checks"] = checks_json(one.checks); }
        list.push_back(std::move(item));
    }
    return dump(json{{"policyHash", reply.policy_hash}, {"tested", reply.tested}, {"allowed", reply.allowed}, {"toAllowed", reply.to_allowed},
                     {"toDenied", reply.to_denied}, {"skipped", reply.skipped}, {"results", std::move(list)}});
}

std::string verify_text(const ledger::VerifyReport& report, const std::string& directory)
{
    std::vector<std::vector<std::string>> rows{
        {"ledger:", printable(directory) + (report.ledger.empty() ? "" : " (" + report.ledger.substr(0, 16) + ")")},
        {"records:", std::to_string(report.records) + " in " + std::to_string(report.files) + (report.files == 1 ? " file" : " files")},
        {"last record:", std::to_string(report.records) + ":" + report.head},
        {"checkpoints:", std::to_string(report.checkpoints) + ", key " + report.public_key.substr(0, 16)},
        {"signed:", report.checkpoints == 0 ? "nothing" : "up to record " + std::to_string(report.signed_records) + " at " + rfc3339(report.signed_at_ms)},
        {"result:", report.intact() ? "intact" : "NOT as it was written"},
    };
    std::string out = table(rows);
    for (const auto& finding : report.findings)
    {
        out += "  " + printable(finding.file) + ", offset " + std::to_string(finding.offset) + ": " + printable(finding.what) + "\n";
    }
    if (report.more_findings) { out += "  ... and more\n"; }
    return out;
}

std::string verify_json(const ledger::VerifyReport& report, const std::string& directory)
{
    json findings = json::array();
    for (const auto& one : report.findings) { findings.push_back({{"file", one.file}, {"offset", one.offset}, {"record", one.sequence}, {"what", one.what}}); }
    return dump(json{{"intact", report.intact()},
                     {"directory", directory},
                     {"ledger", report.ledger},
                     {"records", report.records},
                     {"files", report.files},
                     {"size_bytes", report.bytes},
                     {"head", report.head},
                     {"checkpoints", report.checkpoints},
                     {"signedRecords", report.signed_records},
                     {"signedAt", report.checkpoints == 0 ? "" : rfc3339(report.signed_at_ms)},
                     {"publicKey", report.public_key},
                     {"unfinished_bytes", report.unfinished},
                     {"findings", std::move(findings)},
                     {"moreFindings", report.more_findings}});
}

} // namespace dstack::cli
