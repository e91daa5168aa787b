#pragma once
#include "services/auth/chain/abi.hpp"
#include "services/auth/chain/fault.hpp"
#include "services/auth/chain/json_rpc.hpp"
#include "services/auth/chain/settings.hpp"
#include <variant>

// What is asked in one batch, and what the replies mean. Pure.
namespace dstack::auth::chain
{

enum class Topic
{
    app,
    kms,
    info, ///< GET /: gatewayAppId and appImplementation
};

struct Question
{
    Topic topic = Topic::info;
    std::string calldata{}; ///< hex, of isAppAllowed or isKmsAllowed; unused for info
};

/// What one endpoint says about one block.
struct Answer
{
    bool allowed = true; ///< for info: always
    bool reverted = false; ///< the contract ended without a verdict: not allowed
    std::string reason{};  ///< the contract's own, printable; empty when allowed
    std::string gateway_app_id{};
    std::string implementation{}; ///< info only: 40 hex
    Block block{};
    std::uint64_t head = 0; ///< the newest block; only where confirmations are counted
};

/// Do two endpoints say the same? The block may differ; a denial is a denial.
bool agree(const Answer& a, const Answer& b);

template <class T>
using Outcome = std::variant<T, Failure>;

/// The batch: chain id, the block, the calls at that block, and the newest block's number where confirmations are counted.
/// `pin`: the block; empty: the one tagged "finalized".
std::vector<Call> batch_for(const Question& question, const Settings& settings, std::optional<std::uint64_t> pin);
Outcome<Answer> answer_of(const std::vector<Reply>& replies, const Question& question, const Settings& settings,
                          std::optional<std::uint64_t> pin, std::uint64_t unix_now);

/// For confirmations, when the newest block is not known: chain id and block number.
std::vector<Call> head_batch();
Outcome<std::uint64_t> head_of(const std::vector<Reply>& replies, const Settings& settings);

/// What an HTTP answer without a batch in it means; nullopt: status 200.
std::optional<Failure> failure_of_status(int status, std::string_view retry_after, std::uint64_t unix_now);

} // namespace dstack::auth::chain
