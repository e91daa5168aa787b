#include "services/auth/policy.hpp"
#include "services/auth/json_cursor.hpp"
#include "services/auth/json_reader.hpp"
#include "shared/base/time.hpp"
#include <optional>

namespace dstack::auth
{

namespace
{

using Type = JsonCursor::Type;

constexpr std::size_t max_word = 256;
constexpr std::size_t max_reason = 1000;

template <std::size_t N>
bool hex_bytes(std::string_view text, std::array<std::uint8_t, N>& out)
{
    if (text.starts_with("0x") || text.starts_with("0X")) { text.remove_prefix(2); }
    if (text.size() != 2 * N) { return false; }
    for (std::size_t i = 0; i < N; ++i)
    {
        const int high = hex_digit(text[2 * i]);
        const int low = hex_digit(text[2 * i + 1]);
        if (high < 0 || low < 0) { return false; }
        out[i] = static_cast<std::uint8_t>(high << 4 | low);
    }
    return true;
}

// One value of a list; false: the cursor has the complaint.

bool hash_entry(JsonCursor& in, std::string_view text, Hash& out)
{
    return hex_bytes(text, out) || in.refuse(hex_complaint(text, 64));
}

bool device_entry(JsonCursor& in, std::string_view text, std::string& out)
{
    auto hex = normal_hex(text, 64);
    if (!hex) { hex = normal_hex(text, 128); }
    if (!hex) { return in.refuse("must be 64 or 128 hex digits"); }
    out = std::move(*hex);
    return true;
}

bool word_entry(JsonCursor& in, std::string_view text, std::string& out)
{
    if (text.empty() || !is_plain(text, max_word)) { return in.refuse("must be printable ASCII and not empty"); }
    out = text;
    return true;
}

/// The keys of one object, each at most once.
class Keys
{
  public:
    template <std::size_t N>
    Keys(JsonCursor& in, const std::array<std::string_view, N>& known) : in_(in), known_(known.data()), count_(N)
    {
    }
    /// The number of the next key in the list; nullopt at the end or after a mistake.
    std::optional<std::size_t> next()
    {
        std::string_view key;
        if (!in_.next_key(key)) { return std::nullopt; }
        for (std::size_t i = 0; i < count_; ++i)
        {
            if (key != known_[i]) { continue; }
            if ((seen_ >> i & 1U) != 0)
            {
                in_.refuse_twice(key);
                return std::nullopt;
            }
            seen_ |= 1U << i;
            return i;
        }
        std::string names;
        for (std::size_t i = 0; i < count_; ++i) { (names += i == 0 ? "" : ", ") += known_[i]; }
        in_.refuse("unknown key; known: " + names);
        return std::nullopt;
    }
    bool has(std::size_t number) const { return (seen_ >> number & 1U) != 0; }

  private:
    JsonCursor& in_;
    const std::string_view* known_;
    std::size_t count_;
    std::uint32_t seen_ = 0;
};

bool read_time(JsonCursor& in, std::uint64_t& out)
{
    std::string_view text;
    if (!in.read(text)) { return false; }
    const auto time = parse_time(text);
    if (!time) { return in.refuse("must be a time such as 2026-12-24T18:00:00Z"); }
    out = std::max<std::uint64_t>(*time, 1); // 0 is what never ends
    return true;
}

bool read_reason(JsonCursor& in, std::string& out)
{
    std::string_view text;
    if (!in.read(text)) { return false; }
    if (!is_plain(text, max_reason)) { return in.refuse("must be at most 1000 printable ASCII characters"); }
    out = text;
    return true;
}

template <class T>
using ReadEntry = bool (*)(JsonCursor&, std::string_view, T&);

/// {"value": ..., "expires": ..., "reason": ...}; without "expires" it is as good as the plain value.
template <class T>
bool read_temporary(JsonCursor& in, Temporary<T>& out, ReadEntry<T> entry)
{
    static constexpr std::array<std::string_view, 3> known{"value", "expires", "reason"};
    if (!in.enter_object()) { return false; }
    Keys keys{in, known};
    while (const auto key = keys.next())
    {
        std::string_view text;
        bool fine = false;
        if (*key == 0) { fine = in.read(text) && entry(in, text, out.value); }
        else if (*key == 1) { fine = read_time(in, out.expires_ms); }
        else { fine = read_reason(in, out.reason); }
        if (!fine) { return false; }
    }
    if (in.failed()) { return false; }
    return keys.has(0) || in.refuse("needs a \"value\"");
}

/// {"any": true}, perhaps with an end.
template <class T>
bool read_any(JsonCursor& in, AllowList<T>& out, Limited<T>& limited)
{
    static constexpr std::array<std::string_view, 3> known{"any", "expires", "reason"};
    if (!in.enter_object()) { return false; }
    bool any = false;
    Keys keys{in, known};
    while (const auto key = keys.next())
    {
        bool fine = false;
        if (*key == 0) { fine = in.read(any); }
        else if (*key == 1) { fine = read_time(in, limited.any_until_ms); }
        else { fine = read_reason(in, limited.any_reason); }
        if (!fine) { return false; }
    }
    if (in.failed()) { return false; }
    out.any = any && !keys.has(1);
    if (!any) { limited.any_until_ms = 0; }
    return true;
}

/// An array of values, or {"any": true}.
template <class T>
bool read_list(JsonCursor& in, AllowList<T>& out, ReadEntry<T> entry)
{
    Limited<T> limited;
    const Type type = in.type();
    if (type == Type::object)
    {
        if (!read_any(in, out, limited)) { return false; }
    }
    else if (type != Type::array) { return in.refuse_type("an array or {\"any\": true}"); }
    else
    {
        in.enter_array();
        while (in.next_item())
        {
            const Type item = in.type();
            Temporary<T> one;
            if (item == Type::string)
            {
                std::string_view text;
                if (!in.read(text) || !entry(in, text, one.value)) { return false; }
            }
            else if (item != Type::object) { return in.refuse_type("a string or an object with \"value\""); }
            else if (!read_temporary(in, one, entry)) { return false; }
            if (one.expires_ms == 0) { out.values.push_back(std::move(one.value)); }
            else { limited.entries.push_back(std::move(one)); }
        }
        if (in.failed()) { return false; }
        if (!std::is_sorted(out.values.begin(), out.values.end())) { std::sort(out.values.begin(), out.values.end()); }
        std::sort(limited.entries.begin(), limited.entries.end());
    }
    if (!limited.entries.empty() || limited.any_until_ms != 0)
    {
        out.limited = std::make_shared<const Limited<T>>(std::move(limited));
    }
    return true;
}

constexpr std::array<std::string_view, 3> app_keys{"composeHashes", "devices", "allowAnyDevice"};
constexpr std::array<std::string_view, 3> kms_keys{"mrAggregated", "devices", "allowAnyDevice"};

/// An app's or the KMS's part: a list of hashes, a list of devices, and whether any device will do.
bool read_part(JsonCursor& in, const std::array<std::string_view, 3>& known, AllowList<Hash>& hashes,
               AllowList<std::string>& devices)
{
    if (!in.enter_object()) { return false; }
    Keys keys{in, known};
    bool any = false;
    while (const auto key = keys.next())
    {
        bool fine = false;
        if (*key == 0) { fine = read_list<Hash>(in, hashes, hash_entry); }
        else if (*key == 1) { fine = read_list<std::string>(in, devices, device_entry); }
        else { fine = in.read(any); }
        if (!fine) { return false; }
    }
    devices.any = devices.any || any;
    return !in.failed();
}

/// So many bytes of text register one app, at least: room is made at once for those that a text can hold.
constexpr std::size_t bytes_per_app = 192;

bool read_apps(JsonCursor& in, Policy& out, std::size_t text_bytes)
{
    out.apps.reserve(text_bytes / bytes_per_app);
    if (!in.enter_object()) { return false; }
    std::string_view key;
    while (in.next_key(key))
    {
        AppId id{};
        if (!hex_bytes(key, id)) { return in.refuse("an app id " + hex_complaint(key, 40)); }
        const auto [place, is_new] = out.apps.try_emplace(id);
        // also the same id in another spelling: two readers could take different ones
        if (!is_new) { return in.refuse("this app comes twice"); }
        if (!read_part(in, app_keys, place->second.compose_hashes, place->second.devices)) { return false; }
    }
    return !in.failed();
}

bool read_plain(JsonCursor& in, std::string& out)
{
    std::string_view text;
    if (!in.read(text)) { return false; }
    if (!is_plain(text, max_word)) { return in.refuse("must be at most 256 printable ASCII characters"); }
    out = text;
    return true;
}

using Graces = std::vector<Temporary<std::string>>;

/// {"status": "OutOfDate", "until": "..."}
bool read_grace(JsonCursor& in, Graces& out)
{
    static constexpr std::array<std::string_view, 3> known{"status", "until", "reason"};
    if (!in.enter_object()) { return false; }
    Temporary<std::string> one;
    one.reason = "tcbGrace";
    Keys keys{in, known};
    while (const auto key = keys.next())
    {
        std::string_view text;
        bool fine = false;
        if (*key == 0) { fine = in.read(text) && word_entry(in, text, one.value); }
        else if (*key == 1) { fine = read_time(in, one.expires_ms); }
        else { fine = read_reason(in, one.reason); }
        if (!fine) { return false; }
    }
    if (in.failed()) { return false; }
    if (!keys.has(0) || !keys.has(1)) { return in.refuse("needs \"status\" and \"until\""); }
    out.push_back(std::move(one));
    return true;
}

bool read_graces(JsonCursor& in, Graces& out)
{
    const Type type = in.type();
    if (type == Type::object) { return read_grace(in, out); }
    if (type != Type::array) { return in.refuse_type("an object with \"status\" and \"until\", or an array of such"); }
    in.enter_array();
    while (in.next_item())
    {
        if (!read_grace(in, out)) { return false; }
    }
    return !in.failed();
}

void add_graces(AllowList<std::string>& statuses, Graces graces)
{
    if (graces.empty()) { return; }
    Limited<std::string> all;
    if (statuses.limited) { all = *statuses.limited; }
    for (auto& grace : graces) { all.entries.push_back(std::move(grace)); }
    std::sort(all.entries.begin(), all.entries.end());
    statuses.limited = std::make_shared<const Limited<std::string>>(std::move(all));
}

constexpr std::array<std::string_view, 10> top_keys{
    "osImages",          "allowedTcbStatuses", "allowedAdvisoryIds", "tcbGrace", "gatewayAppId", "kmsContractAddr", "chainId",
    "appImplementation", "kms",                "apps"};

bool read_top(JsonCursor& in, std::size_t key, Policy& out, Graces& graces, std::size_t text_bytes)
{
    switch (key)
    {
    case 0:
        return read_list<Hash>(in, out.os_images, hash_entry);
    case 1:
        out.tcb_statuses = {};
        return read_list<std::string>(in, out.tcb_statuses, word_entry);
    case 2:
        return read_list<std::string>(in, out.advisory_ids, word_entry);
    case 3:
        return read_graces(in, graces);
    case 4:
        return read_plain(in, out.gateway_app_id);
    case 5:
        return read_plain(in, out.kms_contract_address);
    case 6:
        return in.read(out.chain_id);
    case 7:
        return read_plain(in, out.app_implementation);
    case 8:
        return read_part(in, kms_keys, out.kms_aggregated_mrs, out.kms_devices);
    case 9:
        return read_apps(in, out, text_bytes);
    default:
        return false;
    }
}

} // namespace

std::optional<std::uint64_t> parse_time(std::string_view text)
{
    constexpr std::size_t seconds_end = 19; // 2026-12-24T18:00:00
    if (text.size() <= seconds_end) { return std::nullopt; }
    std::string plain{text.substr(0, seconds_end)};
    plain[10] = plain[10] == 't' || plain[10] == ' ' ? 'T' : plain[10];
    const auto part = [](std::string_view digits, int most)
    {
        const bool fine = digits.size() == 2 && hex_digit(digits[0]) >= 0 && hex_digit(digits[0]) < 10 &&
                          hex_digit(digits[1]) >= 0 && hex_digit(digits[1]) < 10;
        const int value = fine ? (digits[0] - '0') * 10 + (digits[1] - '0') : -1;
        return value <= most ? value : -1;
    };
    if (part(plain.substr(11, 2), 23) < 0 || part(plain.substr(14, 2), 59) < 0 || part(plain.substr(17, 2), 59) < 0)
    {
        return std::nullopt;
    }
    std::string millis = "000";
    std::size_t at = seconds_end;
    if (text[at] == '.')
    {
        const std::size_t first = ++at;
        for (; at < text.size() && text[at] >= '0' && text[at] <= '9'; ++at)
        {
            if (at - first < millis.size()) { millis[at - first] = text[at]; }
        }
        if (at == first) { return std::nullopt; }
    }
    const auto utc = unix_ms_from_rfc3339(plain + "." + millis + "Z");
    const std::string_view zone = text.substr(at);
    if (!utc || zone == "Z" || zone == "z") { return utc; }
    if (zone.size() != 6 || (zone[0] != '+' && zone[0] != '-') || zone[3] != ':') { return std::nullopt; }
    const int hours = part(zone.substr(1, 2), 23);
    const int minutes = part(zone.substr(4, 2), 59);
    if (hours < 0 || minutes < 0) { return std::nullopt; }
    const std::uint64_t offset = static_cast<std::uint64_t>(hours * 60 + minutes) * 60'000;
    if (zone[0] == '-') { return *utc + offset; }
    return *utc >= offset ? std::optional{*utc - offset} : std::nullopt;
}

Result<Policy> parse_policy(std::string_view text)
{
    JsonCursor in{text, "policy"};
    Policy out;
    Graces graces;
    if (in.enter_object())
    {
        Keys keys{in, top_keys};
        while (const auto key = keys.next())
        {
            if (!read_top(in, *key, out, graces, text.size())) { break; }
        }
        in.end();
    }
    if (in.failed()) { return Error{Errc::invalid_argument, in.complaint(), {}, {}}; }
    add_graces(out.tcb_statuses, std::move(graces));
    return out;
}

} // namespace dstack::auth
