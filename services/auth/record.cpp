#include "services/auth/record.hpp"
#include "services/auth/json_reader.hpp"
#include "services/auth/json_text.hpp"
#include "shared/base/time.hpp"
#include "shared/ledger/format.hpp"
#include <algorithm>
#include <charconv>
#include <cstring>

namespace dstack::auth
{

namespace
{

using simdjson::dom::element;

struct Member
{
    std::string_view key;
    std::string BootInfo::*member;
};
constexpr std::array<Member, 6> members{{
    {"tcbStatus", &BootInfo::tcb_status},
    {"osImageHash", &BootInfo::os_image_hash},
    {"appId", &BootInfo::app_id},
    {"composeHash", &BootInfo::compose_hash},
    {"deviceId", &BootInfo::device_id},
    {"mrAggregated", &BootInfo::mr_aggregated},
}};

/// What of the boot a rule looks at; null when it is more than one value.
const std::string* judged_by(const BootInfo& boot, std::string_view rule)
{
    const std::string_view key = ledger::boot_key_of(rule);
    const auto* found = std::find_if(members.begin(), members.end(), [key](const Member& one) { return one.key == key; });
    return found == members.end() ? nullptr : &(boot.*found->member);
}

/// Writes into room that is large enough: what it may take was added up before.
class Pen
{
  public:
    explicit Pen(char* at) : at_(at) {}
    char* end() const { return at_; }
    void put(char c) { *at_++ = c; }
    void put(std::string_view text)
    {
        std::memcpy(at_, text.data(), text.size());
        at_ += text.size();
    }
    void number(std::string_view key, std::uint64_t value)
    {
        put(key);
        at_ = std::to_chars(at_, at_ + 24, value).ptr;
    }
    /// For text that needs no escapes: hex, and words of our own.
    void raw(std::string_view key_and_quote, std::string_view value)
    {
        put(key_and_quote);
        put(value);
        put('"');
    }
    void text(std::string_view key, std::string_view value)
    {
        put(key);
        put('"');
        at_ = write_escaped(at_, value);
        put('"');
    }

  private:
    char* at_;
};

/// The most that a text may become: each byte \\u00XX.
constexpr std::size_t room(std::string_view text) { return 6 * text.size() + 32; }

std::size_t room(const BootInfo& boot)
{
    std::size_t out = 4096 + room(boot.tee_variant) + room(boot.tcb_status) + room(boot.key_provider_info);
    for (const std::string* text : {&boot.app_id, &boot.compose_hash, &boot.instance_id, &boot.device_id, &boot.os_image_hash, &boot.mr_aggregated, &boot.mr_system})
    {
        out += text->size();
    }
    for (const std::string& id : boot.advisory_ids) { out += room(id); }
    return out;
}

std::size_t room(const Record& record)
{
    std::size_t out = 1024 + (record.boot ? room(*record.boot) : 0) + room(record.verdict.rule) + room(record.verdict.reason) + record.policy_hash.size();
    for (const RuleResult& rule : record.verdict.rules) { out += room(rule.rule) + room(rule.expected) + room(rule.got); }
    for (const std::string* text : {&record.kind, &record.agent, &record.change, &record.app_id, &record.compose_hash, &record.by, &record.reason})
    {
        out += room(*text);
    }
    return out;
}

void add_boot(Pen& out, const BootInfo& boot)
{
    out.raw(R"(,"boot":{"appId":")", boot.app_id);
    out.raw(R"(,"composeHash":")", boot.compose_hash);
    out.raw(R"(,"instanceId":")", boot.instance_id);
    out.raw(R"(,"deviceId":")", boot.device_id);
    out.raw(R"(,"osImageHash":")", boot.os_image_hash);
    out.raw(R"(,"mrAggregated":")", boot.mr_aggregated);
    if (!boot.mr_system.empty()) { out.raw(R"(,"mrSystem":")", boot.mr_system); }
    if (!boot.key_provider_info.empty()) { out.raw(R"(,"keyProviderInfo":")", boot.key_provider_info); }
    if (!boot.tee_variant.empty()) { out.text(R"(,"teeVariant":)", boot.tee_variant); }
    out.text(R"(,"tcbStatus":)", boot.tcb_status);
    std::string_view before = R"(,"advisoryIds":[)";
    for (const std::string& id : boot.advisory_ids)
    {
        out.text(before, id);
        before = ",";
    }
    if (!boot.advisory_ids.empty()) { out.put(']'); }
    out.put('}');
}

/// [rule, pass, expected, got]: without `got` when it is what the boot says, and then without `expected` when that is it.
void add_check(Pen& out, const RuleResult& rule, const BootInfo* boot)
{
    out.raw("[\"", rule.rule);
    out.put(rule.pass ? ",true" : ",false");
    const std::string* value = boot == nullptr ? nullptr : judged_by(*boot, rule.rule);
    const bool same_got = value != nullptr && rule.got == *value;
    if (!same_got || rule.expected != rule.got) { out.text(",", rule.expected); }
    if (!same_got) { out.text(",", rule.got); }
    out.put(']');
}

void add_decision(Pen& out, const Record& record)
{
    out.put(record.verdict.allowed ? ",\"allowed\":true" : ",\"allowed\":false");
    out.raw(",\"rule\":\"", record.verdict.rule);
    if (!record.verdict.reason.empty()) { out.text(",\"reason\":", record.verdict.reason); }
    const BootInfo* boot = record.boot ? &*record.boot : nullptr;
    if (boot != nullptr) { add_boot(out, *boot); }
    out.put(",\"rules\":[");
    bool first = true;
    for (const RuleResult& rule : record.verdict.rules)
    {
        if (!first) { out.put(','); }
        first = false;
        add_check(out, rule, boot);
    }
    out.put(']');
    out.text(",\"agent\":", record.agent);
    out.number(",\"latency_us\":", record.latency_us);
}

std::string text_of(element value)
{
    std::string_view text;
    return value.get(text) == simdjson::SUCCESS ? std::string{text} : std::string{};
}

std::string text_of(simdjson::simdjson_result<element> value)
{
    std::string_view text;
    return value.get(text) == simdjson::SUCCESS ? std::string{text} : std::string{};
}

bool flag_of(simdjson::simdjson_result<element> value)
{
    bool flag = false;
    return value.get(flag) == simdjson::SUCCESS && flag;
}

BootInfo boot_of(element boot)
{
    BootInfo out;
    out.app_id = text_of(boot["appId"]);
    out.compose_hash = text_of(boot["composeHash"]);
    out.instance_id = text_of(boot["instanceId"]);
    out.device_id = text_of(boot["deviceId"]);
    out.os_image_hash = text_of(boot["osImageHash"]);
    out.mr_aggregated = text_of(boot["mrAggregated"]);
    out.mr_system = text_of(boot["mrSystem"]);
    out.key_provider_info = text_of(boot["keyProviderInfo"]);
    out.tee_variant = text_of(boot["teeVariant"]);
    out.tcb_status = text_of(boot["tcbStatus"]);
    simdjson::dom::array ids;
    if (boot["advisoryIds"].get(ids) == simdjson::SUCCESS)
    {
        for (const element id : ids) { out.advisory_ids.push_back(text_of(id)); }
    }
    return out;
}

schema::Check check_of(const simdjson::dom::array& words, const std::optional<BootInfo>& boot)
{
    schema::Check out;
    out.rule = text_of(words.at(0));
    out.pass = flag_of(words.at(1));
    const std::string* value = boot ? judged_by(*boot, out.rule) : nullptr;
    out.got = words.size() > 3 ? text_of(words.at(3)) : value != nullptr ? *value : std::string{};
    out.expected = words.size() > 2 ? text_of(words.at(2)) : out.got;
    return out;
}

std::vector<schema::Check> checks_of(element line, const std::optional<BootInfo>& boot)
{
    std::vector<schema::Check> out;
    simdjson::dom::array rules;
    if (line["rules"].get(rules) != simdjson::SUCCESS) { return out; }
    for (const element rule : rules)
    {
        simdjson::dom::array words;
        if (rule.get(words) == simdjson::SUCCESS) { out.push_back(check_of(words, boot)); }
    }
    return out;
}

Error broken(std::string_view why) { return Error{Errc::data_loss, std::string{why}, {}, {}}; }

Result<Decided> decided_of(element line)
{
    Decided out;
    Entry& entry = out.entry;
    if (line["seq"].get(entry.sequence) != simdjson::SUCCESS || entry.sequence == 0) { return broken("no number"); }
    const std::string time = text_of(line["time"]);
    const auto time_ms = unix_ms_from_rfc3339(time);
    if (!time_ms) { return broken("no time"); }
    entry.time_ms = *time_ms;
    entry.kind = text_of(line["kind"]);
    entry.policy_hash = text_of(line["policy"]);
    if (entry.kind == "policy")
    {
        entry.change.change = text_of(line["change"]);
        entry.change.app_id = text_of(line["app_id"]);
        entry.change.compose_hash = text_of(line["compose_hash"]);
        entry.change.policy_hash = entry.policy_hash;
        entry.change.by = text_of(line["by"]);
    }
    if (entry.kind != "app" && entry.kind != "kms") { return out; }
    element boot;
    if (line["boot"].get(boot) == simdjson::SUCCESS) { out.boot = boot_of(boot); }
    out.checks = checks_of(line, out.boot);
    schema::Decision& decision = entry.decision;
    decision.sequence = entry.sequence;
    decision.time = time;
    decision.kind = entry.kind;
    decision.policy_hash = entry.policy_hash;
    decision.allowed = flag_of(line["allowed"]);
    decision.rule = text_of(line["rule"]);
    decision.reason = text_of(line["reason"]);
    if (out.boot)
    {
        decision.app_id = out.boot->app_id;
        decision.compose_hash = out.boot->compose_hash;
        decision.instance_id = out.boot->instance_id;
        decision.os_image_hash = out.boot->os_image_hash;
    }
    for (const schema::Check& check : out.checks)
    {
        if (check.rule != decision.rule) { continue; }
        decision.expected = check.expected;
        decision.got = check.got;
    }
    return out;
}

} // namespace

std::string_view RecordWriter::time_text(std::uint64_t time_ms)
{
    if (time_ms / 1000 != second_)
    {
        const std::string text = rfc3339(time_ms);
        second_ = time_ms / 1000;
        std::copy_n(text.begin(), std::min(text.size(), time_.size()), time_.begin());
    }
    const auto ms = static_cast<unsigned>(time_ms % 1000);
    time_[20] = static_cast<char>('0' + ms / 100);
    time_[21] = static_cast<char>('0' + ms / 10 % 10);
    time_[22] = static_cast<char>('0' + ms % 10);
    return {time_.data(), time_.size()};
}

std::string_view RecordWriter::line(const Record& record, std::uint64_t sequence, std::string_view previous_hash, bool first_of_flush)
{
    const std::size_t needed = room(record);
    if (needed > size_)
    {
        room_ = std::make_unique_for_overwrite<char[]>(needed);
        size_ = needed;
    }
    Pen out{room_.get()};
    out.number("{\"seq\":", sequence);
    out.raw(",\"time\":\"", time_text(record.time_ms));
    out.raw(",\"kind\":\"", record.kind);
    if (record.kind == "app" || record.kind == "kms") { add_decision(out, record); }
    else if (record.kind == "policy")
    {
        out.text(",\"change\":", record.change);
        out.text(",\"app_id\":", record.app_id);
        out.text(",\"compose_hash\":", record.compose_hash);
        out.text(",\"by\":", record.by);
        out.text(",\"reason\":", record.reason);
    }
    else { out.text(",\"reason\":", record.reason); }
    if (first_of_flush) { out.put(",\"flush\":true"); }
    out.raw(",\"policy\":\"", record.policy_hash);
    out.raw(",\"prev\":\"", previous_hash);
    out.put('}');
    return {room_.get(), static_cast<std::size_t>(out.end() - room_.get())};
}

struct EntryReader::State
{
    simdjson::dom::parser parser{};
};

EntryReader::EntryReader() : state_(std::make_unique<State>()) {}
EntryReader::EntryReader(EntryReader&&) noexcept = default;
EntryReader::~EntryReader() = default;

Result<Decided> EntryReader::read_decision(std::string_view line)
{
    auto root = parse_json(state_->parser, line);
    if (!root) { return broken(root.error().message); }
    return decided_of(*root);
}

Result<Entry> EntryReader::read(std::string_view line)
{
    auto decided = read_decision(line);
    if (!decided) { return std::move(decided).error(); }
    return std::move(decided->entry);
}

} // namespace dstack::auth
