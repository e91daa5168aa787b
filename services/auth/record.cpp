#include "services/auth/record.hpp"
#include "services/auth/json_reader.hpp"
#include "services/auth/json_text.hpp"
#include "shared/base/time.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"

namespace dstack::auth
{

namespace
{

using simdjson::dom::element;

void add(std::string& out, std::string_view key, std::string_view value)
{
    ((out += ",\"") += key) += "\":";
    append_json_string(out, value);
}

void add_boot(std::string& out, const BootInfo& boot)
{
    out += ",\"boot\":{\"teeVariant\":";
    append_json_string(out, boot.tee_variant);
    add(out, "mrAggregated", boot.mr_aggregated);
    add(out, "osImageHash", boot.os_image_hash);
    add(out, "mrSystem", boot.mr_system);
    add(out, "appId", boot.app_id);
    add(out, "composeHash", boot.compose_hash);
    add(out, "instanceId", boot.instance_id);
    add(out, "deviceId", boot.device_id);
    add(out, "keyProviderInfo", boot.key_provider_info);
    add(out, "tcbStatus", boot.tcb_status);
    out += ",\"advisoryIds\":[";
    for (const std::string& id : boot.advisory_ids)
    {
        if (out.back() != '[') { out += ','; }
        append_json_string(out, id);
    }
    out += "]}";
}

void add_decision(std::string& out, const Record& record)
{
    out += record.verdict.allowed ? ",\"allowed\":true" : ",\"allowed\":false";
    add(out, "rule", record.verdict.rule);
    add(out, "reason", record.verdict.reason);
    out += ",\"rules\":[";
    for (const RuleResult& rule : record.verdict.rules)
    {
        if (out.back() != '[') { out += ','; }
        out += "{\"rule\":";
        append_json_string(out, rule.rule);
        out += rule.pass ? ",\"pass\":true" : ",\"pass\":false";
        add(out, "expected", rule.expected);
        add(out, "got", rule.got);
        out += '}';
    }
    out += ']';
    if (record.boot) { add_boot(out, *record.boot); }
    add(out, "agent", record.agent);
    out += ",\"latency_us\":" + std::to_string(record.latency_us);
}

std::string text_at(element object, std::string_view pointer)
{
    std::string_view text;
    const auto failed = object.at_pointer(pointer).get(text);
    return failed == simdjson::SUCCESS ? std::string{text} : std::string{};
}

bool flag_at(element object, std::string_view pointer)
{
    bool value = false;
    const auto failed = object.at_pointer(pointer).get(value);
    return failed == simdjson::SUCCESS && value;
}

schema::Decision decision_of(element line)
{
    schema::Decision out;
    out.allowed = flag_at(line, "/allowed");
    out.rule = text_at(line, "/rule");
    out.reason = text_at(line, "/reason");
    out.app_id = text_at(line, "/boot/appId");
    out.compose_hash = text_at(line, "/boot/composeHash");
    out.instance_id = text_at(line, "/boot/instanceId");
    out.os_image_hash = text_at(line, "/boot/osImageHash");
    simdjson::dom::array rules;
    if (line.at_key("rules").get(rules) == simdjson::SUCCESS)
    {
        for (const element rule : rules)
        {
            if (text_at(rule, "/rule") != out.rule) { continue; }
            out.expected = text_at(rule, "/expected");
            out.got = text_at(rule, "/got");
        }
    }
    return out;
}

Error broken(std::string_view why) { return Error{Errc::data_loss, std::string{why}, {}, {}}; }

} // namespace

std::string encode_record(const Record& record, std::uint64_t sequence, std::string_view previous_hash)
{
    std::string out = "{\"seq\":" + std::to_string(sequence);
    add(out, "time", rfc3339(record.time_ms));
    add(out, "kind", record.kind);
    if (record.kind == "app" || record.kind == "kms") { add_decision(out, record); }
    else if (record.kind == "policy")
    {
        add(out, "change", record.change);
        add(out, "app_id", record.app_id);
        add(out, "compose_hash", record.compose_hash);
        add(out, "by", record.by);
        add(out, "reason", record.reason);
    }
    else { add(out, "reason", record.reason); }
    add(out, "policy", record.policy_hash);
    add(out, "prev", previous_hash);
    out += '}';
    return out;
}

std::string line_hash(std::string_view line) { return crypto::to_hex(crypto::sha256(line)); }

struct EntryReader::State
{
    simdjson::dom::parser parser{};
};

EntryReader::EntryReader() : state_(std::make_unique<State>()) {}
EntryReader::EntryReader(EntryReader&&) noexcept = default;
EntryReader::~EntryReader() = default;

Result<Entry> EntryReader::read(std::string_view line, std::string* previous)
{
    auto root = parse_json(state_->parser, line);
    if (!root) { return broken(root.error().message); }
    Entry out;
    if (root->at_key("seq").get(out.sequence) != simdjson::SUCCESS || out.sequence == 0) { return broken("no number"); }
    const std::string time = text_at(*root, "/time");
    const auto time_ms = unix_ms_from_rfc3339(time);
    if (!time_ms) { return broken("no time"); }
    out.time_ms = *time_ms;
    out.kind = text_at(*root, "/kind");
    out.policy_hash = text_at(*root, "/policy");
    if (out.kind == "app" || out.kind == "kms")
    {
        out.decision = decision_of(*root);
        out.decision.sequence = out.sequence;
        out.decision.time = time;
        out.decision.kind = out.kind;
        out.decision.policy_hash = out.policy_hash;
    }
    else if (out.kind == "policy")
    {
        out.change.change = text_at(*root, "/change");
        out.change.app_id = text_at(*root, "/app_id");
        out.change.compose_hash = text_at(*root, "/compose_hash");
        out.change.policy_hash = out.policy_hash;
        out.change.by = text_at(*root, "/by");
    }
    if (previous != nullptr) { *previous = text_at(*root, "/prev"); }
    return out;
}

Result<Entry> Chain::next(std::string_view line)
{
    std::string previous;
    auto entry = reader_.read(line, &previous);
    if (!entry) { return std::move(entry).error().within("record " + std::to_string(sequence_ + 1)); }
    if (entry->sequence != sequence_ + 1)
    {
        return broken("record " + std::to_string(sequence_ + 1) + " is missing: " + std::to_string(entry->sequence) +
                      " is in its place");
    }
    if (previous != hash_)
    {
        return broken("record " + std::to_string(entry->sequence) +
                      " does not continue the chain: it, or the one before, was changed");
    }
    sequence_ = entry->sequence;
    hash_ = line_hash(line);
    if (identity_.empty()) { identity_ = hash_; }
    return entry;
}

} // namespace dstack::auth
