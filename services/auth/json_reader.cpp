#include "services/auth/json_reader.hpp"
#include <algorithm>

namespace dstack::auth
{

namespace
{
constexpr std::size_t max_depth = 16;

std::string_view digits_of(std::string_view text)
{
    return text.starts_with("0x") || text.starts_with("0X") ? text.substr(2) : text;
}

bool is_hex(char c) { return hex_digit(c) >= 0; }
} // namespace

Result<simdjson::dom::element> parse_json(simdjson::dom::parser& parser, std::string_view text)
{
    if (parser.max_depth() != max_depth || parser.capacity() < text.size())
    {
        const auto failed = parser.allocate(std::max<std::size_t>(text.size(), 4096), max_depth);
        if (failed != simdjson::SUCCESS)
        {
            return Error{Errc::resource_exhausted, "not enough memory for the JSON document", {}, {}};
        }
    }
    simdjson::dom::element root;
    const auto failed = parser.parse(text.data(), text.size(), true).get(root);
    if (failed == simdjson::SUCCESS) { return root; }
    if (failed == simdjson::DEPTH_ERROR)
    {
        return Error{Errc::invalid_argument, "no valid JSON: nested too deeply", {}, {}};
    }
    if (failed == simdjson::UTF8_ERROR) { return Error{Errc::invalid_argument, "no valid JSON: not UTF-8", {}, {}}; }
    if (failed == simdjson::EMPTY) { return Error{Errc::invalid_argument, "no valid JSON: empty", {}, {}}; }
    return Error{Errc::invalid_argument, "no valid JSON", {}, {}};
}

Result<std::vector<simdjson::dom::key_value_pair>> members_of(simdjson::dom::element element, std::string_view where)
{
    simdjson::dom::object object;
    if (element.get(object) != simdjson::SUCCESS)
    {
        return Error{Errc::invalid_argument,
                     std::string{where} + ": must be an object, not " + std::string{type_name(element)},
                     {},
                     {}};
    }
    std::vector<simdjson::dom::key_value_pair> members;
    members.reserve(object.size());
    for (const auto member : object) { members.push_back(member); }
    std::vector<std::string_view> keys;
    keys.reserve(members.size());
    for (const auto& member : members) { keys.push_back(member.key); }
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice != keys.end())
    {
        return Error{
            Errc::invalid_argument, std::string{where} + ": the key \"" + shown(*twice) + "\" comes twice", {}, {}};
    }
    return members;
}

Result<std::string> string_of(simdjson::dom::element element, std::string_view where)
{
    std::string_view text;
    if (element.get(text) == simdjson::SUCCESS) { return std::string{text}; }
    return Error{Errc::invalid_argument,
                 std::string{where} + ": must be a string, not " + std::string{type_name(element)},
                 {},
                 {}};
}

Result<bool> bool_of(simdjson::dom::element element, std::string_view where)
{
    bool value = false;
    if (element.get(value) == simdjson::SUCCESS) { return value; }
    return Error{Errc::invalid_argument,
                 std::string{where} + ": must be true or false, not " + std::string{type_name(element)},
                 {},
                 {}};
}

std::string_view type_name(simdjson::dom::element element)
{
    using Type = simdjson::dom::element_type;
    switch (element.type())
    {
    case Type::ARRAY:
        return "an array";
    case Type::OBJECT:
        return "an object";
    case Type::INT64:
    case Type::UINT64:
    case Type::DOUBLE:
        return "a number";
    case Type::STRING:
        return "a string";
    case Type::BOOL:
        return "a boolean";
    case Type::NULL_VALUE:
        return "null";
    }
    return "something else";
}

std::optional<std::string> normal_hex(std::string_view text, std::size_t digits)
{
    text = digits_of(text);
    if (text.size() != digits) { return std::nullopt; }
    std::string out{text};
    int worst = 0;
    for (char& c : out)
    {
        worst |= hex_digit(c);
        c = static_cast<char>(c | 0x20); // digits have that bit set
    }
    if (worst < 0) { return std::nullopt; }
    return out;
}

std::string hex_complaint(std::string_view text, std::size_t digits)
{
    text = digits_of(text);
    std::string out = "must be " + std::to_string(digits) + " hex digits";
    if (!std::all_of(text.begin(), text.end(), is_hex)) { return out + ", has other characters"; }
    return out + ", has " + std::to_string(text.size());
}

bool is_plain(std::string_view text, std::size_t limit)
{
    return text.size() <= limit && std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
}

std::string shown(std::string_view text)
{
    constexpr std::size_t limit = 80;
    std::string out;
    for (const char c : text.substr(0, limit)) { out += c >= 0x20 && c < 0x7f && c != '"' && c != '\\' ? c : '?'; }
    if (text.size() > limit) { out += "..."; }
    return out;
}

} // namespace dstack::auth
