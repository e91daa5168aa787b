#include "services/auth/chain/question.hpp"
#include "shared/crypto/hex.hpp"
#include <algorithm>
#include <array>
#include <charconv>
#include <ctime>

namespace dstack::auth::chain
{

namespace
{

/// More than any honest contract of this kind needs, and so little that a hostile app contract cannot keep an endpoint
/// busy: about 50 ms.
constexpr std::string_view gas_limit = "0x989680"; // 10 million
constexpr std::chrono::seconds longest_wait{300};
constexpr std::size_t max_gateway_id = 256;

Failure broken(std::string_view why) { return {Fault::malformed, plain(why), {}}; }

std::string hex_of(const Selector& selector) { return crypto::to_hex(selector); }

Call contract_call(const Settings& settings, std::string_view calldata, const std::string& block)
{
    std::string parameters = R"([{"to":"0x)" + settings.contract + R"(","data":"0x)";
    parameters += calldata;
    parameters += R"(","gas":")";
    parameters += gas_limit;
    parameters += R"("},")" + block + R"("])";
    return {"eth_call", std::move(parameters)};
}

/// Does the message hold one of these (lower-case) texts?
template <std::size_t N>
bool says(const RpcError& error, const std::array<std::string_view, N>& texts)
{
    std::string lower = error.message;
    std::transform(lower.begin(), lower.end(), lower.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    return std::any_of(texts.begin(), texts.end(), [&](std::string_view text) { return lower.find(text) != std::string::npos; });
}

bool says_rate_limit(const RpcError& error)
{
    static constexpr std::array<std::string_view, 3> texts{"rate limit", "too many requests", "request limit"};
    return error.code == 429 || error.code == -32005 || error.code == -32029 || says(error, texts);
}

/// Nodes differ in the code (3, -32000, -32015), and agree in the text.
bool says_revert(const RpcError& error)
{
    static constexpr std::array<std::string_view, 1> texts{"revert"};
    return error.code == 3 || says(error, texts);
}

bool says_no_block(const RpcError& error)
{
    static constexpr std::array<std::string_view, 6> texts{"header not found", "block not found", "missing trie node", "blockoutofrange",
                                                           "unknown block", "block could not be found"};
    return says(error, texts);
}

Failure failure_of(const RpcError& error)
{
    const std::string text = std::to_string(error.code) + " " + plain(error.message);
    if (says_rate_limit(error)) { return {Fault::rate_limited, text, {}}; }
    if (says_no_block(error)) { return {Fault::stale, text, {}}; }
    return {Fault::rpc_error, text, {}};
}

/// The first thing that is wrong with all replies: limits, then the chain.
std::optional<Failure> common_failure(const std::vector<Reply>& replies, const Settings& settings)
{
    for (const Reply& reply : replies)
    {
        if (reply.error && says_rate_limit(*reply.error)) { return failure_of(*reply.error); }
    }
    if (replies.empty()) { return broken("no reply"); }
    const Reply& chain = replies.front();
    if (chain.error) { return failure_of(*chain.error); }
    const auto id = chain.text ? quantity(*chain.text) : std::nullopt;
    if (!id) { return broken("eth_chainId: no number"); }
    if (*id != settings.chain_id)
    {
        return Failure{Fault::wrong_chain, "is on chain " + std::to_string(*id) + ", not on " + std::to_string(settings.chain_id), {}};
    }
    return std::nullopt;
}

/// The bytes that a contract returned, or why there are none.
Outcome<crypto::Bytes> returned(const Reply& reply, const Settings& settings)
{
    if (reply.error) { return failure_of(*reply.error); }
    if (!reply.text) { return broken("eth_call: no bytes"); }
    auto bytes = crypto::from_hex(*reply.text);
    if (!bytes || !reply.text->starts_with("0x")) { return broken("eth_call: no hex text"); }
    if (bytes->empty())
    {
        return Failure{Fault::no_contract, "there is no KMS contract at 0x" + settings.contract, {}};
    }
    return std::move(*bytes);
}

std::optional<Failure> read_block(const Reply& reply, const Settings& settings, std::optional<std::uint64_t> pin,
                                  std::uint64_t unix_now, Block& out)
{
    if (reply.error) { return failure_of(*reply.error); }
    if (!reply.block)
    {
        if (reply.text) { return broken("eth_getBlockByNumber: no block"); }
        return Failure{Fault::stale, pin ? "block " + std::to_string(*pin) + " is not there" : "no block is finalized", {}};
    }
    if (pin && reply.block->number != *pin) { return broken("eth_getBlockByNumber: another block than was asked for"); }
    out = *reply.block;
    const auto limit = static_cast<std::uint64_t>(settings.max_block_age.count());
    if (limit != 0 && out.time < unix_now && unix_now - out.time > limit)
    {
        return Failure{Fault::stale,
                       "block " + std::to_string(out.number) + " is " + std::to_string(unix_now - out.time) +
                           " s old, max_block_age_s is " + std::to_string(limit),
                       {}};
    }
    return std::nullopt;
}

std::optional<Failure> read_ruling(const Reply& reply, const Settings& settings, Answer& out)
{
    if (reply.error && says_revert(*reply.error))
    {
        const auto data = crypto::from_hex(reply.error->data);
        const std::string why = data ? revert_reason(*data) : std::string{};
        out.allowed = false;
        out.reverted = true;
        out.reason = "the contract reverted" + (why.empty() ? std::string{} : ": " + plain(why));
        return std::nullopt;
    }
    auto bytes = returned(reply, settings);
    if (auto* failure = std::get_if<Failure>(&bytes)) { return std::move(*failure); }
    auto ruling = decode_ruling(std::get<crypto::Bytes>(bytes));
    if (!ruling) { return broken(ruling.error().message); }
    out.allowed = ruling->allowed;
    if (!out.allowed) { out.reason = ruling->reason.empty() ? "the contract denied it without a reason" : plain(ruling->reason); }
    return std::nullopt;
}

std::optional<Failure> read_gateway(const Reply& reply, const Settings& settings, Answer& out)
{
    auto bytes = returned(reply, settings);
    if (auto* failure = std::get_if<Failure>(&bytes)) { return std::move(*failure); }
    auto text = decode_string(std::get<crypto::Bytes>(bytes));
    if (!text) { return broken("gatewayAppId: " + text.error().message); }
    if (text->size() > max_gateway_id || std::any_of(text->begin(), text->end(), [](char c) { return c < 0x20 || c > 0x7e; }))
    {
        return broken("gatewayAppId: must be at most 256 printable ASCII characters");
    }
    out.gateway_app_id = std::move(*text);
    return std::nullopt;
}

std::optional<Failure> read_implementation(const Reply& reply, const Settings& settings, Answer& out)
{
    auto bytes = returned(reply, settings);
    if (auto* failure = std::get_if<Failure>(&bytes)) { return std::move(*failure); }
    auto address = decode_address(std::get<crypto::Bytes>(bytes));
    if (!address) { return broken("appImplementation: " + address.error().message); }
    out.implementation = std::move(*address);
    return std::nullopt;
}

std::optional<std::uint64_t> number_in(const Reply& reply) { return reply.text ? quantity(*reply.text) : std::nullopt; }

/// Retry-After: seconds, or a date (RFC 9110, 10.2.3).
std::optional<std::chrono::seconds> wait_of(std::string_view text, std::uint64_t unix_now)
{
    std::uint64_t seconds = 0;
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), seconds);
    if (parsed.ptr != text.data() && parsed.ec == std::errc::result_out_of_range) { return longest_wait; }
    if (parsed.ec != std::errc{} || parsed.ptr != text.data() + text.size())
    {
        std::tm date{};
        const std::string copy{text};
        const char* end = strptime(copy.c_str(), "%a, %d %b %Y %H:%M:%S GMT", &date);
        if (end == nullptr || *end != '\0') { return std::nullopt; }
        const auto then = timegm(&date);
        seconds = then > 0 && static_cast<std::uint64_t>(then) > unix_now ? static_cast<std::uint64_t>(then) - unix_now : 0;
    }
    return std::min(longest_wait, std::chrono::seconds{static_cast<std::int64_t>(std::min<std::uint64_t>(seconds, 1'000'000))});
}

} // namespace

bool agree(const Answer& a, const Answer& b)
{
    if (a.allowed != b.allowed) { return false; }
    return !a.allowed || (a.gateway_app_id == b.gateway_app_id && a.implementation == b.implementation);
}

std::vector<Call> batch_for(const Question& question, const Settings& settings, std::optional<std::uint64_t> pin)
{
    const std::string block = pin ? to_quantity(*pin) : "finalized";
    std::vector<Call> out{{"eth_chainId", "[]"}, {"eth_getBlockByNumber", "[\"" + block + "\",false]"}};
    if (question.topic == Topic::info) { out.push_back(contract_call(settings, hex_of(app_implementation), block)); }
    else { out.push_back(contract_call(settings, question.calldata, block)); }
    out.push_back(contract_call(settings, hex_of(gateway_app_id), block));
    if (pin) { out.push_back({"eth_blockNumber", "[]"}); }
    return out;
}

Outcome<Answer> answer_of(const std::vector<Reply>& replies, const Question& question, const Settings& settings,
                          std::optional<std::uint64_t> pin, std::uint64_t unix_now)
{
    if (auto failure = common_failure(replies, settings)) { return std::move(*failure); }
    if (replies.size() != (pin ? 5U : 4U)) { return broken("not as many replies as calls"); }
    Answer out;
    if (auto failure = read_block(replies[1], settings, pin, unix_now, out.block)) { return std::move(*failure); }
    auto failure = question.topic == Topic::info ? read_implementation(replies[2], settings, out) : read_ruling(replies[2], settings, out);
    if (failure) { return std::move(*failure); }
    if (auto other = read_gateway(replies[3], settings, out)) { return std::move(*other); }
    if (pin)
    {
        if (replies[4].error) { return failure_of(*replies[4].error); }
        const auto head = number_in(replies[4]);
        if (!head) { return broken("eth_blockNumber: no number"); }
        out.head = *head;
    }
    return out;
}

std::vector<Call> head_batch() { return {{"eth_chainId", "[]"}, {"eth_blockNumber", "[]"}}; }

Outcome<std::uint64_t> head_of(const std::vector<Reply>& replies, const Settings& settings)
{
    if (auto failure = common_failure(replies, settings)) { return std::move(*failure); }
    if (replies.size() != 2) { return broken("not as many replies as calls"); }
    if (replies[1].error) { return failure_of(*replies[1].error); }
    const auto head = number_in(replies[1]);
    if (!head) { return broken("eth_blockNumber: no number"); }
    if (*head < settings.confirmations.value_or(0))
    {
        return Failure{Fault::stale, "the newest block is " + std::to_string(*head) + ", that is less than the confirmations", {}};
    }
    return *head;
}

std::optional<Failure> failure_of_status(int status, std::string_view retry_after, std::uint64_t unix_now)
{
    if (status == 200) { return std::nullopt; }
    const std::string text = "HTTP " + std::to_string(status);
    if (status == 429) { return Failure{Fault::rate_limited, text, wait_of(retry_after, unix_now)}; }
    if (status >= 500) { return Failure{Fault::server_error, text, wait_of(retry_after, unix_now)}; }
    if (status >= 400) { return Failure{Fault::refused, text, {}}; }
    if (status >= 300) { return Failure{Fault::redirected, text + ", redirects are not followed", {}}; }
    return Failure{Fault::malformed, text, {}};
}

} // namespace dstack::auth::chain
