#include "services/auth/boot_info.hpp"
#include "services/auth/json_reader.hpp"
#include <array>

namespace dstack::auth
{

namespace
{

constexpr std::size_t max_word = 64; // a TCB status, an advisory id, a TEE variant
constexpr std::size_t max_advisories = 256;
constexpr std::size_t max_key_provider_digits = 32 * 1024;

struct HexField
{
    std::string_view key;
    std::string BootInfo::*member;
    std::array<std::size_t, 2> digits; // the second may be 0: the empty string is one of the lengths
    bool required;
};

constexpr std::array<HexField, 7> hex_fields{{
    {"mrAggregated", &BootInfo::mr_aggregated, {64, 64}, true},
    {"osImageHash", &BootInfo::os_image_hash, {64, 0}, true},
    {"mrSystem", &BootInfo::mr_system, {64, 0}, false},
    {"appId", &BootInfo::app_id, {40, 40}, true},
    {"composeHash", &BootInfo::compose_hash, {64, 64}, true},
    {"instanceId", &BootInfo::instance_id, {40, 0}, true},
    {"deviceId", &BootInfo::device_id, {64, 128}, true},
}};

Error refused(std::string_view key, std::string_view why)
{
    return Error{Errc::invalid_argument, std::string{key} + ": " + std::string{why}, {}, {}};
}

Result<std::string> read_hex(const HexField& field, simdjson::dom::element value)
{
    auto text = string_of(value, field.key);
    if (!text) { return text; }
    for (const std::size_t digits : field.digits)
    {
        if (digits == 0 && text->empty()) { return std::string{}; }
        auto hex = digits != 0 ? normal_hex(*text, digits) : std::nullopt;
        if (hex) { return std::move(*hex); }
    }
    return refused(field.key, hex_complaint(*text, field.digits[0]));
}

Result<std::string> read_word(std::string_view key, simdjson::dom::element value)
{
    auto text = string_of(value, key);
    if (text && !is_plain(*text, max_word)) { return refused(key, "must be at most 64 printable ASCII characters"); }
    return text;
}

Result<std::vector<std::string>> read_advisories(simdjson::dom::element value)
{
    simdjson::dom::array array;
    if (value.get(array) != simdjson::SUCCESS)
    {
        return refused("advisoryIds", "must be an array of strings, not " + std::string{type_name(value)});
    }
    if (array.size() > max_advisories) { return refused("advisoryIds", "has more than 256 entries"); }
    std::vector<std::string> out;
    out.reserve(array.size());
    for (const auto element : array)
    {
        auto word = read_word("advisoryIds", element);
        if (!word) { return std::move(word).error(); }
        out.push_back(std::move(*word));
    }
    return out;
}

Result<std::string> read_key_provider(simdjson::dom::element value)
{
    constexpr std::string_view key = "keyProviderInfo";
    auto text = string_of(value, key);
    if (!text || text->empty()) { return text; }
    if (text->size() > max_key_provider_digits) { return refused(key, "is too long"); }
    const std::size_t digits = text->size() - (text->starts_with("0x") || text->starts_with("0X") ? 2 : 0);
    auto hex = digits % 2 == 0 ? normal_hex(*text, digits) : std::nullopt;
    if (!hex) { return refused(key, "must be an even number of hex digits"); }
    return std::move(*hex);
}

Result<Done> read_member(std::string_view key, simdjson::dom::element value, BootInfo& out)
{
    const auto keep = [](auto result, auto& member) -> Result<Done>
    {
        if (!result) { return std::move(result).error(); }
        member = std::move(*result);
        return Done{};
    };
    for (const HexField& field : hex_fields)
    {
        if (key == field.key) { return keep(read_hex(field, value), out.*field.member); }
    }
    if (key == "teeVariant") { return keep(read_word(key, value), out.tee_variant); }
    if (key == "tcbStatus") { return keep(read_word(key, value), out.tcb_status); }
    if (key == "advisoryIds") { return keep(read_advisories(value), out.advisory_ids); }
    if (key == "keyProviderInfo") { return keep(read_key_provider(value), out.key_provider_info); }
    return Done{};
}

} // namespace

std::string_view to_string(Kind kind) { return kind == Kind::app ? "app" : "kms"; }

struct BootInfoReader::State
{
    simdjson::dom::parser parser{};
};

BootInfoReader::BootInfoReader() : state_(std::make_unique<State>()) {}
BootInfoReader::~BootInfoReader() = default;

Result<BootInfo> BootInfoReader::read(std::string_view body)
{
    auto root = parse_json(state_->parser, body);
    if (!root) { return std::move(root).error(); }
    auto members = members_of(*root, "body");
    if (!members) { return std::move(members).error(); }
    BootInfo out;
    for (const auto& member : *members)
    {
        auto taken = read_member(member.key, member.value, out);
        if (!taken) { return std::move(taken).error(); }
    }
    for (const HexField& field : hex_fields)
    {
        bool there = !field.required;
        for (const auto& member : *members) { there = there || member.key == field.key; }
        if (!there) { return refused(field.key, "missing"); }
    }
    return out;
}

} // namespace dstack::auth
