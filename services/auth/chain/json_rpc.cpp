#include "services/auth/chain/json_rpc.hpp"
#include "services/auth/json_reader.hpp"
#include <charconv>

namespace dstack::auth::chain
{

namespace
{

constexpr std::size_t max_message = 1024;
using simdjson::dom::element;

Error broken(std::string why) { return Error{Errc::invalid_argument, std::move(why), {}, {}}; }

/// The revert's bytes: a string, or (some nodes) an object that holds it.
std::string error_data(element value)
{
    std::string_view text;
    simdjson::dom::object object;
    if (value.get(text) == simdjson::SUCCESS) { return std::string{text}; }
    if (value.get(object) == simdjson::SUCCESS && object["data"].get(text) == simdjson::SUCCESS) { return std::string{text}; }
    return {};
}

Result<RpcError> read_error(element value)
{
    auto members = members_of(value, "error");
    if (!members) { return std::move(members).error(); }
    RpcError out;
    bool has_code = false;
    for (const auto& member : *members)
    {
        if (member.key == "code")
        {
            has_code = member.value.get(out.code) == simdjson::SUCCESS;
            if (!has_code) { return broken("error.code: must be a whole number"); }
        }
        else if (member.key == "message")
        {
            std::string_view text;
            if (member.value.get(text) == simdjson::SUCCESS) { out.message = text.substr(0, max_message); }
        }
        else if (member.key == "data") { out.data = error_data(member.value); }
    }
    if (!has_code) { return broken("error.code: missing"); }
    return out;
}

Result<Block> read_block(element value)
{
    auto members = members_of(value, "block");
    if (!members) { return std::move(members).error(); }
    Block out;
    bool number = false;
    bool time = false;
    for (const auto& member : *members)
    {
        std::string_view text;
        if (member.value.get(text) != simdjson::SUCCESS) { continue; }
        if (member.key == "hash") { out.hash = normal_hex(text, 64).value_or(""); }
        else if (member.key == "number" || member.key == "timestamp")
        {
            const auto parsed = quantity(text);
            (member.key == "number" ? number : time) = parsed.has_value();
            (member.key == "number" ? out.number : out.time) = parsed.value_or(0);
        }
    }
    if (!number || !time || out.hash.empty()) { return broken("block: number, hash or timestamp is missing or wrong"); }
    return out;
}

Result<Reply> read_result(element value)
{
    Reply out;
    std::string_view text;
    if (value.is_null()) { return out; }
    if (value.get(text) == simdjson::SUCCESS)
    {
        out.text = std::string{text};
        return out;
    }
    auto block = read_block(value);
    if (!block) { return std::move(block).error(); }
    out.block = std::move(*block);
    return out;
}

/// `id` stays 0 when it is null or missing.
Result<Reply> read_reply(element value, std::uint64_t& id)
{
    auto members = members_of(value, "reply");
    if (!members) { return std::move(members).error(); }
    std::optional<element> result;
    std::optional<element> error;
    for (const auto& member : *members)
    {
        if (member.key == "jsonrpc")
        {
            std::string_view version;
            if (member.value.get(version) != simdjson::SUCCESS || version != "2.0") { return broken("jsonrpc: must be \"2.0\""); }
        }
        else if (member.key == "id")
        {
            if (!member.value.is_null() && member.value.get(id) != simdjson::SUCCESS) { return broken("id: not one of ours"); }
        }
        else if (member.key == "result") { result = member.value; }
        else if (member.key == "error" && !member.value.is_null()) { error = member.value; }
    }
    if (error && result && !result->is_null()) { return broken("a reply with a result and an error"); }
    if (error)
    {
        auto read = read_error(*error);
        if (!read) { return std::move(read).error(); }
        Reply out;
        out.error = std::move(*read);
        return out;
    }
    if (!result) { return broken("a reply without result and without error"); }
    return read_result(*result);
}

} // namespace

struct BatchReader::State
{
    simdjson::dom::parser parser{};
};

BatchReader::BatchReader() : state_(std::make_unique<State>()) {}
BatchReader::~BatchReader() = default;

std::string batch_body(std::span<const Call> calls)
{
    std::string out = "[";
    std::size_t id = 0;
    for (const Call& call : calls)
    {
        out += id == 0 ? "" : ",";
        out += R"({"jsonrpc":"2.0","id":)" + std::to_string(++id) + R"(,"method":")";
        out += call.method;
        out += R"(","params":)" + call.parameters + "}";
    }
    return out + "]";
}

Result<std::vector<Reply>> BatchReader::read(std::string_view body, std::size_t count)
{
    auto root = parse_json(state_->parser, body);
    if (!root) { return std::move(root).error(); }
    simdjson::dom::array array;
    if (root->get(array) != simdjson::SUCCESS)
    {
        std::uint64_t id = 0;
        auto single = read_reply(*root, id);
        if (!single) { return std::move(single).error(); }
        if (!single->error) { return broken("a single reply to a batch"); }
        return std::vector<Reply>(count, *single);
    }
    if (array.size() != count)
    {
        return broken(std::to_string(array.size()) + " replies to " + std::to_string(count) + " calls");
    }
    std::vector<Reply> out(count);
    std::vector<bool> seen(count, false);
    for (const element one : array)
    {
        std::uint64_t id = 0;
        auto reply = read_reply(one, id);
        if (!reply) { return std::move(reply).error(); }
        if (id < 1 || id > count) { return broken("id: not one of ours"); }
        if (seen[id - 1]) { return broken("two replies to one call"); }
        seen[id - 1] = true;
        out[id - 1] = std::move(*reply);
    }
    return out;
}

std::optional<std::uint64_t> quantity(std::string_view text)
{
    if (!text.starts_with("0x") || text.size() < 3 || text.size() > 18) { return std::nullopt; }
    std::uint64_t out = 0;
    const auto parsed = std::from_chars(text.data() + 2, text.data() + text.size(), out, 16);
    if (parsed.ec != std::errc{} || parsed.ptr != text.data() + text.size()) { return std::nullopt; }
    return out;
}

std::string to_quantity(std::uint64_t value)
{
    char digits[16];
    const auto end = std::to_chars(digits, digits + sizeof digits, value, 16).ptr;
    return "0x" + std::string(digits, end);
}

} // namespace dstack::auth::chain
