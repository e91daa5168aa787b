#include "services/auth/chain/question.hpp"
#include "tests/catch.hpp"
#include "tests/unit/auth/chain_vectors.hpp"

using namespace dstack::auth::chain;
using namespace std::chrono_literals;

namespace
{
constexpr std::uint64_t now = 1'800'000'000;

Settings settings(std::optional<std::uint64_t> confirmations = {})
{
    Settings out;
    out.contract = std::string(40, 'c');
    out.chain_id = 31337;
    out.confirmations = confirmations;
    return out;
}

std::string hex(std::string_view digits) { return "0x" + std::string{digits}; }

Reply text(std::string value)
{
    Reply out;
    out.text = std::move(value);
    return out;
}
Reply error(std::int64_t code, std::string message, std::string data = {})
{
    Reply out;
    out.error = RpcError{code, std::move(message), std::move(data)};
    return out;
}
Reply block(std::uint64_t number, std::uint64_t time = now - 60)
{
    Reply out;
    out.block = Block{number, std::string(64, 'b'), time};
    return out;
}

const std::string allowed = hex(chain_vectors::rulings[0].data);
const std::string not_registered = hex(chain_vectors::rulings[1].data);
const std::string rude = hex(chain_vectors::rulings[5].data);
const std::string gateway = hex(chain_vectors::texts[1].data);
const std::string address = hex(chain_vectors::address.data);

std::vector<Reply> good() { return {text("0x7a69"), block(100), text(allowed), text(gateway)}; }
const Question app{Topic::app, "1e079198"};
const Question info{Topic::info, {}};

/// What came of it, in a word that a table can hold: "allowed", "denied: <reason>", or the fault and its detail.
std::string outcome(const std::vector<Reply>& replies, const Question& question = app, const Settings& with = settings(),
                    std::optional<std::uint64_t> pin = {})
{
    const auto answer = answer_of(replies, question, with, pin, now);
    if (const auto* failure = std::get_if<Failure>(&answer)) { return std::string{to_string(failure->fault)} + ": " + failure->detail; }
    const Answer& said = std::get<Answer>(answer);
    return said.allowed ? "allowed" : "denied: " + said.reason;
}

std::vector<Reply> with(std::size_t place, Reply reply)
{
    auto out = good();
    out[place] = std::move(reply);
    return out;
}
} // namespace

TEST_CASE("one batch asks for the chain, the block, the verdict and the gateway at that block")
{
    const std::string call = R"([{"to":"0x)" + std::string(40, 'c') + R"(","data":"0x)";
    auto calls = batch_for(app, settings(), {});
    REQUIRE(calls.size() == 4);
    CHECK(calls[0].method == "eth_chainId");
    CHECK((calls[1].method == "eth_getBlockByNumber" && calls[1].parameters == R"(["finalized",false])"));
    CHECK((calls[2].method == "eth_call" && calls[2].parameters == call + R"(1e079198","gas":"0x989680"},"finalized"])"));
    CHECK((calls[3].method == "eth_call" && calls[3].parameters == call + R"(95f51931","gas":"0x989680"},"finalized"])"));
    calls = batch_for(info, settings(12), 100);
    REQUIRE(calls.size() == 5);
    CHECK(calls[1].parameters == R"(["0x64",false])");
    CHECK(calls[2].parameters == call + R"(25a992da","gas":"0x989680"},"0x64"])");
    CHECK(calls[3].parameters.ends_with(R"("0x64"])"));
    CHECK(calls[4].method == "eth_blockNumber");
    calls = head_batch();
    REQUIRE(calls.size() == 2);
    CHECK(calls[0].method == "eth_chainId");
}

TEST_CASE("what the replies mean")
{
    struct Row
    {
        std::vector<Reply> replies;
        std::string outcome;
    };
    const std::vector<Row> rows = {
        {good(), "allowed"},
        {with(2, text(not_registered)), "denied: App not registered"},
        {with(2, text(rude)), "denied: n?? ?quoted? ?"},
        {with(2, text(hex(std::string(64, '0') + std::string(62, '0') + "40" + std::string(64, '0')))),
         "denied: the contract denied it without a reason"},
        {with(2, error(3, "execution reverted: x", hex(chain_vectors::reverts[0].data))), "denied: the contract reverted: closed on sundays"},
        {with(2, error(3, "execution reverted", hex(chain_vectors::reverts[1].data))), "denied: the contract reverted: panic 17"},
        {with(2, error(3, "whatever")), "denied: the contract reverted"},
        {with(2, error(-32000, "execution reverted")), "denied: the contract reverted"},
        {with(2, error(-32015, "VM execution error: Reverted 0x")), "denied: the contract reverted"},
        // the endpoint's limits, wherever they are told
        {with(0, error(429, "compute units")), "rpc_rate_limited: 429 compute units"},
        {with(2, error(-32005, "limit exceeded")), "rpc_rate_limited: -32005 limit exceeded"},
        {with(3, error(-32000, "Rate Limit reached")), "rpc_rate_limited: -32000 Rate Limit reached"},
        {with(3, error(-32000, "429 Too Many Requests")), "rpc_rate_limited: -32000 429 Too Many Requests"},
        // the chain
        {with(0, text("0x1")), "rpc_wrong_chain: is on chain 1, not on 31337"},
        {with(0, text("31337")), "rpc_malformed: eth_chainId: no number"},
        {with(0, text("0xffffffffffffffffffff")), "rpc_malformed: eth_chainId: no number"},
        {with(0, block(1)), "rpc_malformed: eth_chainId: no number"},
        {with(0, error(-32601, "method not found")), "rpc_error: -32601 method not found"},
        // the block
        {with(1, Reply{}), "rpc_stale: no block is finalized"},
        {with(1, text("0x1")), "rpc_malformed: eth_getBlockByNumber: no block"},
        {with(1, error(-39001, "Unknown block")), "rpc_stale: -39001 Unknown block"},
        {with(1, block(100, now - 7200)), "allowed"},
        {with(1, block(100, now - 7201)), "rpc_stale: block 100 is 7201 s old, max_block_age_s is 7200"},
        {with(1, block(100, now + 100)), "allowed"},
        // the calls
        {with(2, Reply{}), "rpc_malformed: eth_call: no bytes"},
        {with(2, text("")), "rpc_malformed: eth_call: no hex text"},
        {with(2, text("0x")), "rpc_no_contract: there is no KMS contract at 0x" + std::string(40, 'c')},
        {with(2, text("0x1")), "rpc_malformed: eth_call: no hex text"},
        {with(2, text("0x01")), "rpc_malformed: not what the contract's interface says: no boolean where the verdict should be"},
        {with(2, text(std::string{chain_vectors::rulings[0].data})), "rpc_malformed: eth_call: no hex text"},
        {with(2, error(-32000, "header not found")), "rpc_stale: -32000 header not found"},
        {with(2, error(-32000, "missing trie node ab")), "rpc_stale: -32000 missing trie node ab"},
        {with(2, error(-32603, "internal \"error\"\n")), "rpc_error: -32603 internal ?error??"},
        {with(3, text("0x")), "rpc_no_contract: there is no KMS contract at 0x" + std::string(40, 'c')},
        {with(3, error(3, "execution reverted")), "rpc_error: 3 execution reverted"},
        {with(3, text(hex(chain_vectors::texts[0].data))), "allowed"},
        {with(3, text(hex(chain_vectors::texts[5].data))), "rpc_malformed: gatewayAppId: must be at most 256 printable ASCII characters"},
        {{}, "rpc_malformed: no reply"},
        {{text("0x7a69")}, "rpc_malformed: not as many replies as calls"},
    };
    for (const Row& row : rows) { CHECK(outcome(row.replies) == row.outcome); }
}

TEST_CASE("any age, when that is wanted")
{
    Settings any = settings();
    any.max_block_age = 0s;
    CHECK(outcome(with(1, block(100, 1)), app, any) == "allowed");
}

TEST_CASE("a block that was asked for by number")
{
    auto replies = good();
    replies.push_back(text("0x70"));
    CHECK(outcome(replies, app, settings(12), 100) == "allowed");
    CHECK(outcome(replies, app, settings(12), 99) == "rpc_malformed: eth_getBlockByNumber: another block than was asked for");
    replies[1] = Reply{};
    CHECK(outcome(replies, app, settings(12), 100) == "rpc_stale: block 100 is not there");
    replies[1] = block(100);
    replies[4] = error(-32603, "no");
    CHECK(outcome(replies, app, settings(12), 100) == "rpc_error: -32603 no");
    replies[4] = block(1);
    CHECK(outcome(replies, app, settings(12), 100) == "rpc_malformed: eth_blockNumber: no number");
}

TEST_CASE("the newest block")
{
    const auto of = [](std::vector<Reply> replies) { return head_of(replies, settings(12)); };
    CHECK(std::get<std::uint64_t>(of({text("0x7a69"), text("0x64")})) == 100);
    CHECK(std::get<std::uint64_t>(of({text("0x7a69"), text("0xc")})) == 12);
    CHECK(std::get<Failure>(of({text("0x7a69"), text("0xb")})).fault == Fault::stale);
    CHECK(std::get<Failure>(of({text("0x1"), text("0x64")})).fault == Fault::wrong_chain);
    CHECK(std::get<Failure>(of({text("0x7a69"), text("100")})).fault == Fault::malformed);
    CHECK(std::get<Failure>(of({text("0x7a69"), error(429, "")})).fault == Fault::rate_limited);
}

TEST_CASE("what GET / is told")
{
    auto replies = good();
    replies[2] = text(address);
    auto answer = answer_of(replies, info, settings(), {}, now);
    REQUIRE(std::holds_alternative<Answer>(answer));
    CHECK(std::get<Answer>(answer).implementation == chain_vectors::address.text);
    CHECK(std::get<Answer>(answer).gateway_app_id == "gw");
    CHECK(std::get<Answer>(answer).allowed);
    replies[2] = text(allowed + "01");
    CHECK(std::holds_alternative<Answer>(answer_of(replies, info, settings(), {}, now))); // a word is an address, whatever follows
    replies[2] = text(hex(std::string(64, 'f')));
    CHECK(outcome(replies, info) == "rpc_malformed: appImplementation: not what the contract's interface says: an address is too long");
}

TEST_CASE("statuses without a batch")
{
    struct Row
    {
        int status;
        std::string retry_after;
        Fault fault;
        std::optional<std::chrono::seconds> wait;
    };
    const Row rows[] = {
        {429, "", Fault::rate_limited, {}},
        {429, "17", Fault::rate_limited, 17s},
        {429, "0", Fault::rate_limited, 0s},
        {429, "99999999999999999999999", Fault::rate_limited, 300s},
        {429, "86400", Fault::rate_limited, 300s},
        {429, "-5", Fault::rate_limited, {}},
        {429, "soon", Fault::rate_limited, {}},
        {429, "17 s", Fault::rate_limited, {}},
        {503, "Fri, 15 Jan 2027 08:00:30 GMT", Fault::server_error, 30s}, // `now` is 08:00:00
        {503, "Fri, 15 Jan 2027 07:00:00 GMT", Fault::server_error, 0s},
        {503, "Fri, 15 Jan 2028 07:00:00 GMT", Fault::server_error, 300s},
        {503, "Fri, 15 Jan 2027 08:00:30 CET", Fault::server_error, {}},
        {500, "", Fault::server_error, {}},
        {502, "3", Fault::server_error, 3s},
        {401, "", Fault::refused, {}},
        {403, "5", Fault::refused, {}},
        {404, "", Fault::refused, {}},
        {301, "", Fault::redirected, {}},
        {308, "", Fault::redirected, {}},
        {204, "", Fault::malformed, {}},
    };
    for (const Row& row : rows)
    {
        INFO(row.status << " " << row.retry_after);
        const auto failure = failure_of_status(row.status, row.retry_after, now);
        REQUIRE(failure);
        CHECK(failure->fault == row.fault);
        CHECK(failure->retry_after == row.wait);
    }
    CHECK_FALSE(failure_of_status(200, "5", now));
}
