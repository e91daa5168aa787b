// Hostile answers of an RPC endpoint: they are read within their bounds, nothing unprintable gets further, and what is
// allowed was really said by a reply on the right chain.
#include "services/auth/chain/question.hpp"
#include "shared/crypto/hex.hpp"
#include <algorithm>
#include <cstdint>
#include <cstdlib>

using namespace dstack::auth::chain;

namespace
{

void check(bool holds)
{
    if (!holds) { std::abort(); }
}

bool printable(std::string_view text)
{
    return std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
}

Settings settings()
{
    Settings out;
    out.contract = std::string(40, 'c');
    out.chain_id = 1;
    return out;
}

void judge(const std::vector<Reply>& replies, Topic topic, std::optional<std::uint64_t> pin)
{
    const Settings with = settings();
    const auto outcome = answer_of(replies, Question{topic, {}}, with, pin, 1'800'000'000);
    if (const auto* failure = std::get_if<Failure>(&outcome))
    {
        check(printable(failure->detail) && failure->detail.size() < 300);
        return;
    }
    const Answer& answer = std::get<Answer>(outcome);
    check(replies[0].text && quantity(*replies[0].text) == with.chain_id && replies[1].block);
    check(printable(answer.reason) && answer.reason.size() < 300);
    check(printable(answer.gateway_app_id) && answer.gateway_app_id.size() <= 256);
    check(!answer.allowed || topic == Topic::info || (replies[2].text && !answer.reverted));
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size)
{
    const std::string_view text{reinterpret_cast<const char*>(data), size};
    static BatchReader reader;
    for (const std::size_t count : {4U, 5U})
    {
        const auto replies = reader.read(text, count);
        if (!replies) { continue; }
        check(replies->size() == count);
        const std::optional<std::uint64_t> pin = count == 5 ? std::optional<std::uint64_t>{26} : std::nullopt;
        for (const Topic topic : {Topic::app, Topic::kms, Topic::info}) { judge(*replies, topic, pin); }
    }
    // The same bytes as what a contract returned.
    const dstack::crypto::View bytes{data, size};
    if (const auto ruling = decode_ruling(bytes)) { check(ruling->reason.size() <= size); }
    if (const auto words = decode_string(bytes)) { check(words->size() <= size); }
    if (const auto address = decode_address(bytes)) { check(address->size() == 40); }
    check(revert_reason(bytes).size() <= size + 32);
    return 0;
}
