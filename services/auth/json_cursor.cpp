#include "services/auth/json_cursor.hpp"
#include "services/auth/json_reader.hpp"
#include <algorithm>
#include <charconv>
#include <cstring>

namespace dstack::auth
{

namespace
{

/// What ends the plain part of a text: a quote, a backslash, a control character.
constexpr std::array<bool, 256> stops = []
{
    std::array<bool, 256> out{};
    for (std::size_t i = 0; i < 0x20; ++i) { out[i] = true; }
    out['"'] = out['\\'] = true;
    return out;
}();

/// Whether one of eight bytes is such (a byte behind the first that is may be misjudged, which does not matter).
bool has_stop(const char* at)
{
    constexpr std::uint64_t ones = 0x0101010101010101;
    constexpr std::uint64_t tops = 0x8080808080808080;
    std::uint64_t eight = 0;
    std::memcpy(&eight, at, sizeof eight);
    const auto has_zero = [](std::uint64_t x) { return (x - ones) & ~x & tops; };
    const std::uint64_t control = (eight - ones * 0x20) & ~eight & tops;
    return (control | has_zero(eight ^ ones * '"') | has_zero(eight ^ ones * '\\')) != 0;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::string_view name_of(JsonCursor::Type type)
{
    switch (type)
    {
    case JsonCursor::Type::object:
        return "an object";
    case JsonCursor::Type::array:
        return "an array";
    case JsonCursor::Type::string:
        return "a string";
    case JsonCursor::Type::number:
        return "a number";
    case JsonCursor::Type::boolean:
        return "a boolean";
    case JsonCursor::Type::null:
        return "null";
    case JsonCursor::Type::none:
        break;
    }
    return "something else";
}

void append_utf8(std::string& out, std::uint32_t code)
{
    const auto put = [&out](std::uint32_t byte) { out += static_cast<char>(byte); };
    if (code < 0x80) { put(code); }
    else if (code < 0x800)
    {
        put(0xc0 | code >> 6);
        put(0x80 | (code & 0x3f));
    }
    else if (code < 0x10000)
    {
        put(0xe0 | code >> 12);
        put(0x80 | (code >> 6 & 0x3f));
        put(0x80 | (code & 0x3f));
    }
    else
    {
        put(0xf0 | code >> 18);
        put(0x80 | (code >> 12 & 0x3f));
        put(0x80 | (code >> 6 & 0x3f));
        put(0x80 | (code & 0x3f));
    }
}

} // namespace

JsonCursor::JsonCursor(std::string_view text, std::string_view root, Places places) : text_(text), root_(root), places_(places)
{
    if (!simdjson::validate_utf8(text.data(), text.size()))
    {
        failed_ = true;
        complaint_ = "no valid JSON: not UTF-8";
        return;
    }
    skip_space();
    if (position_ == text_.size())
    {
        failed_ = true;
        complaint_ = "no valid JSON: empty";
    }
}

void JsonCursor::skip_space()
{
    while (position_ < text_.size())
    {
        const char c = text_[position_];
        if (c != ' ' && c != '\n' && c != '\r' && c != '\t') { return; }
        ++position_;
    }
}

std::size_t JsonCursor::line() const
{
    const std::size_t end = std::min(value_at_, text_.size());
    if (end < counted_to_) { counted_to_ = newlines_ = 0; }
    const std::string_view more = text_.substr(counted_to_, end - counted_to_);
    newlines_ += static_cast<std::size_t>(std::count(more.begin(), more.end(), '\n'));
    counted_to_ = end;
    return 1 + newlines_;
}

bool JsonCursor::broken(std::string_view why)
{
    if (failed_) { return false; }
    failed_ = true;
    value_at_ = std::min(position_, text_.size());
    const auto last = value_at_ == 0 ? std::string_view::npos : text_.rfind('\n', value_at_ - 1);
    const std::size_t column = last == std::string_view::npos ? value_at_ + 1 : value_at_ - last;
    complaint_ = "no valid JSON at line " + std::to_string(line()) + ", column " + std::to_string(column);
    if (!why.empty()) { (complaint_ += ": ") += why; }
    return false;
}

std::string JsonCursor::joined(std::size_t depth) const
{
    std::string out;
    for (std::size_t i = 0; i < depth; ++i)
    {
        const Frame& frame = frames_[i];
        if (frame.is_object) { (out += out.empty() ? "" : ".") += shown(frame.key); }
        else { ((out += '[') += std::to_string(frame.index)) += ']'; }
    }
    return out.empty() ? std::string{root_} : out;
}

void JsonCursor::complain(std::string text)
{
    failed_ = true;
    complaint_ = std::move(text);
    if (places_ == Places::lines) { complaint_ += " (line " + std::to_string(line()) + ")"; }
}

std::string JsonCursor::path() const { return joined(depth_); }

bool JsonCursor::refuse(std::string_view why)
{
    if (failed_) { return false; }
    complain((path() += ": ") += why);
    return false;
}

bool JsonCursor::refuse_twice(std::string_view key)
{
    if (failed_) { return false; }
    complain(joined(depth_ == 0 ? 0 : depth_ - 1) + ": the key \"" + shown(key) + "\" comes twice");
    return false;
}

bool JsonCursor::refuse_type(std::string_view wanted)
{
    const Type got = type();
    if (got == Type::none) { return broken(); }
    return refuse("must be " + std::string{wanted} + ", not " + std::string{name_of(got)});
}

JsonCursor::Type JsonCursor::type()
{
    if (failed_) { return Type::none; }
    skip_space();
    value_at_ = position_;
    const char c = peek();
    if (c == '{') { return Type::object; }
    if (c == '[') { return Type::array; }
    if (c == '"') { return Type::string; }
    if (c == '-' || is_digit(c)) { return Type::number; }
    if (c == 't' || c == 'f') { return Type::boolean; }
    if (c == 'n') { return Type::null; }
    broken();
    return Type::none;
}

bool JsonCursor::enter(char bracket, bool is_object, std::string_view wanted)
{
    const Type got = type();
    if (got == Type::none) { return false; }
    if (peek() != bracket) { return refuse_type(wanted); }
    if (depth_ == max_depth)
    {
        failed_ = true;
        complaint_ = "no valid JSON: nested too deeply";
        return false;
    }
    ++position_;
    Frame& frame = frames_[depth_++];
    frame.is_object = is_object;
    frame.first = true;
    frame.key.clear();
    frame.index = 0;
    return true;
}

bool JsonCursor::enter_object() { return enter('{', true, "an object"); }
bool JsonCursor::enter_array() { return enter('[', false, "an array"); }

bool JsonCursor::next(char bracket)
{
    if (failed_) { return false; }
    Frame& frame = frames_[depth_ - 1];
    skip_space();
    if (peek() == bracket)
    {
        ++position_;
        --depth_;
        return false;
    }
    if (!frame.first)
    {
        if (peek() != ',') { return broken(); }
        ++position_;
        ++frame.index;
        skip_space();
    }
    frame.first = false;
    return true;
}

bool JsonCursor::next_key(std::string_view& key)
{
    if (!next('}')) { return false; }
    if (peek() != '"') { return broken(); }
    value_at_ = position_;
    if (!take_string(key)) { return false; }
    frames_[depth_ - 1].key.assign(key);
    skip_space();
    if (peek() != ':') { return broken(); }
    ++position_;
    return true;
}

bool JsonCursor::next_item() { return next(']'); }

bool JsonCursor::read(std::string_view& text)
{
    if (type() == Type::none) { return false; }
    if (peek() != '"') { return refuse_type("a string"); }
    return take_string(text);
}

bool JsonCursor::word(std::string_view expected)
{
    if (text_.substr(position_, expected.size()) != expected) { return broken(); }
    position_ += expected.size();
    return true;
}

bool JsonCursor::read(bool& value)
{
    const Type got = type();
    if (got == Type::none) { return false; }
    if (got != Type::boolean) { return refuse_type("true or false"); }
    value = peek() == 't';
    return word(value ? "true" : "false");
}

bool JsonCursor::skip_number()
{
    const std::size_t start = position_;
    const auto digits = [this]
    {
        const std::size_t before = position_;
        while (is_digit(peek())) { ++position_; }
        return position_ > before;
    };
    if (peek() == '-') { ++position_; }
    const bool zero = peek() == '0';
    const std::size_t whole = position_;
    if (!digits()) { return broken(); }
    if (zero && position_ - whole > 1)
    {
        position_ = start;
        return broken();
    }
    if (peek() == '.')
    {
        ++position_;
        if (!digits()) { return broken(); }
    }
    if (peek() == 'e' || peek() == 'E')
    {
        ++position_;
        if (peek() == '+' || peek() == '-') { ++position_; }
        if (!digits()) { return broken(); }
    }
    return true;
}

bool JsonCursor::read(std::uint64_t& value)
{
    constexpr std::string_view wanted = "must be a whole number that is not negative";
    const Type got = type();
    if (got == Type::none) { return false; }
    if (got != Type::number) { return refuse(wanted); }
    const std::size_t start = position_;
    if (!skip_number()) { return false; }
    const std::string_view digits = text_.substr(start, position_ - start);
    const auto [end, failed] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (failed != std::errc{} || end != digits.data() + digits.size()) { return refuse(wanted); }
    return true;
}

bool JsonCursor::skip()
{
    std::string_view text;
    switch (type())
    {
    case Type::none:
        return false;
    case Type::object:
        if (!enter_object()) { return false; }
        while (next_key(text)) { skip(); }
        return !failed_;
    case Type::array:
        if (!enter_array()) { return false; }
        while (next_item()) { skip(); }
        return !failed_;
    case Type::string:
        return take_string(text);
    case Type::number:
        return skip_number();
    case Type::boolean:
        return word(peek() == 't' ? "true" : "false");
    case Type::null:
        return word("null");
    }
    return false;
}

bool JsonCursor::end()
{
    if (failed_) { return false; }
    skip_space();
    return position_ == text_.size() || broken();
}

bool JsonCursor::take_string(std::string_view& text)
{
    const std::size_t start = ++position_;
    const char* at = text_.data() + position_;
    const char* const text_end = text_.data() + text_.size();
    while (text_end - at >= 8 && !has_stop(at)) { at += 8; }
    while (at != text_end && !stops[static_cast<unsigned char>(*at)]) { ++at; }
    position_ = static_cast<std::size_t>(at - text_.data());
    if (peek() == '"' && position_ < text_.size())
    {
        text = text_.substr(start, position_ - start);
        ++position_;
        return true;
    }
    scratch_.assign(text_.substr(start, position_ - start));
    for (;;)
    {
        if (position_ >= text_.size()) { return broken("a text without its end"); }
        const char c = text_[position_];
        if (c == '"')
        {
            ++position_;
            text = scratch_;
            return true;
        }
        if (c == '\\')
        {
            ++position_;
            if (!take_escape()) { return false; }
            continue;
        }
        if (static_cast<unsigned char>(c) < 0x20) { return broken("a control character in a text"); }
        scratch_ += c;
        ++position_;
    }
}

bool JsonCursor::take_hex4(std::uint32_t& out)
{
    const std::string_view digits = text_.substr(std::min(position_, text_.size()), 4);
    const auto [end, failed] = std::from_chars(digits.data(), digits.data() + digits.size(), out, 16);
    if (digits.size() != 4 || failed != std::errc{} || end != digits.data() + 4) { return broken("a wrong escape"); }
    position_ += 4;
    return true;
}

bool JsonCursor::take_escape()
{
    static constexpr std::string_view letters = "\"\\/bfnrt";
    static constexpr std::string_view meanings = "\"\\/\b\f\n\r\t";
    const char c = peek();
    const auto at = letters.find(c);
    if (position_ < text_.size() && at != std::string_view::npos)
    {
        scratch_ += meanings[at];
        ++position_;
        return true;
    }
    if (c != 'u') { return broken("a wrong escape"); }
    ++position_;
    std::uint32_t code = 0;
    if (!take_hex4(code)) { return false; }
    if (code >= 0xdc00 && code < 0xe000) { return broken("half a character"); }
    if (code >= 0xd800 && code < 0xdc00)
    {
        std::uint32_t low = 0;
        if (text_.substr(position_, 2) != "\\u") { return broken("half a character"); }
        position_ += 2;
        if (!take_hex4(low)) { return false; }
        if (low < 0xdc00 || low >= 0xe000) { return broken("half a character"); }
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    append_utf8(scratch_, code);
    return true;
}

} // namespace dstack::auth
