#include "services/auth/boot_info.hpp"
#include "services/auth/json_cursor.hpp"
#include "services/auth/json_reader.hpp"
#include <array>

namespace dstack::auth
{

namespace
{

constexpr std::size_t max_word = 64; // a TCB status, an advisory id, a TEE variant
constexpr std::size_t max_advisories = 256;
constexpr std::size_t max_key_provider_digits = 32 * 1024;

struct Field
{
    std::string_view key;
    std::string BootInfo::*member;      ///< null: advisoryIds
    std::array<std::size_t, 2> digits; ///< the second may be 0: the empty string is one of the lengths. {0, 0}: no hex
    bool required;
};

/// In the order in which the KMS sends them.
constexpr std::array<Field, 11> fields{{
    {"teeVariant", &BootInfo::tee_variant, {0, 0}, false},
    {"mrAggregated", &BootInfo::mr_aggregated, {64, 64}, true},
    {"osImageHash", &BootInfo::os_image_hash, {64, 0}, true},
    {"mrSystem", &BootInfo::mr_system, {64, 0}, false},
    {"appId", &BootInfo::app_id, {40, 40}, true},
    {"composeHash", &BootInfo::compose_hash, {64, 64}, true},
    {"instanceId", &BootInfo::instance_id, {40, 0}, true},
    {"deviceId", &BootInfo::device_id, {64, 128}, true},
    {"keyProviderInfo", &BootInfo::key_provider_info, {1, 1}, false},
    {"tcbStatus", &BootInfo::tcb_status, {0, 0}, false},
    {"advisoryIds", nullptr, {0, 0}, false},
}};
constexpr std::size_t key_provider = 8;

std::string_view without_0x(std::string_view text)
{
    return text.starts_with("0x") || text.starts_with("0X") ? text.substr(2) : text;
}

/// As lower case; false when there are other characters.
bool take_digits(std::string_view digits, std::string& out)
{
    out.assign(digits);
    int worst = 0;
    for (char& c : out)
    {
        worst |= hex_digit(c);
        c = static_cast<char>(c | 0x20); // digits have that bit set
    }
    return worst >= 0;
}

bool read_hex(JsonCursor& in, const Field& field, std::string& out)
{
    std::string_view text;
    if (!in.read(text)) { return false; }
    const std::string_view digits = without_0x(text);
    const bool may_be_empty = field.digits[1] == 0;
    if (text.empty() && may_be_empty)
    {
        out.clear();
        return true;
    }
    const bool right_length = digits.size() == field.digits[0] || (!may_be_empty && digits.size() == field.digits[1]);
    if (right_length && take_digits(digits, out)) { return true; }
    return in.refuse(hex_complaint(text, field.digits[0]));
}

bool read_key_provider(JsonCursor& in, std::string& out)
{
    std::string_view text;
    if (!in.read(text)) { return false; }
    const std::string_view digits = without_0x(text);
    if (digits.size() > max_key_provider_digits) { return in.refuse("is too long"); }
    if (digits.size() % 2 == 0 && take_digits(digits, out)) { return true; }
    return in.refuse("must be an even number of hex digits");
}

bool read_word(JsonCursor& in, std::string& out)
{
    std::string_view text;
    if (!in.read(text)) { return false; }
    if (!is_plain(text, max_word)) { return in.refuse("must be at most 64 printable ASCII characters"); }
    out.assign(text);
    return true;
}

bool read_advisories(JsonCursor& in, std::vector<std::string>& out)
{
    if (in.type() != JsonCursor::Type::array) { return in.refuse_type("an array of strings"); }
    in.enter_array();
    while (in.next_item())
    {
        if (out.size() == max_advisories) { return in.refuse("has more than 256 entries"); }
        out.emplace_back();
        if (!read_word(in, out.back())) { return false; }
    }
    return !in.failed();
}

bool read_field(JsonCursor& in, std::size_t number, BootInfo& out)
{
    const Field& field = fields[number];
    if (field.member == nullptr) { return read_advisories(in, out.advisory_ids); }
    std::string& member = out.*field.member;
    if (number == key_provider) { return read_key_provider(in, member); }
    return field.digits[0] == 0 ? read_word(in, member) : read_hex(in, field, member);
}

} // namespace

std::string_view to_string(Kind kind) { return kind == Kind::app ? "app" : "kms"; }

Result<Done> read_boot_info(std::string_view body, BootInfo& out)
{
    JsonCursor in{body, "body", JsonCursor::Places::none};
    std::uint32_t seen = 0;
    std::size_t expected = 0; // most come in order: look there first
    in.enter_object();
    std::string_view key;
    while (!in.failed() && in.next_key(key))
    {
        std::size_t number = expected;
        if (number >= fields.size() || fields[number].key != key)
        {
            number = 0;
            while (number < fields.size() && fields[number].key != key) { ++number; }
        }
        if (number == fields.size())
        {
            in.skip();
            continue;
        }
        expected = number + 1;
        if ((seen >> number & 1U) != 0) { in.refuse_twice(key); }
        else { read_field(in, number, out); }
        seen |= 1U << number;
    }
    if (!in.end()) { return Error{Errc::invalid_argument, in.complaint(), {}, {}}; }
    for (std::size_t i = 0; i < fields.size(); ++i)
    {
        if (!fields[i].required || (seen >> i & 1U) != 0) { continue; }
        return Error{Errc::invalid_argument, std::string{fields[i].key} + ": missing", {}, {}};
    }
    return Done{};
}

Result<BootInfo> BootInfoReader::read(std::string_view body)
{
    BootInfo out;
    auto done = read_boot_info(body, out);
    if (!done) { return std::move(done).error(); }
    return out;
}

} // namespace dstack::auth
