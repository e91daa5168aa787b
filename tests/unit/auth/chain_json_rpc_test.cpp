#include "services/auth/chain/json_rpc.hpp"
#include "tests/catch.hpp"

using namespace dstack::auth::chain;

namespace
{
const std::string hash = "0x" + std::string(64, 'a');
const std::string block = R"({"number":"0x1a","hash":")" + hash + R"(","timestamp":"0x5","transactions":["0x1","0x2"],"size":7,"x":null})";

std::string reply(int id, const std::string& rest) { return R"({"jsonrpc":"2.0","id":)" + std::to_string(id) + "," + rest + "}"; }
std::string good() { return "[" + reply(1, R"("result":"0x1")") + "," + reply(2, R"("result":)" + block) + "]"; }
} // namespace

TEST_CASE("a batch is one array with ids from 1")
{
    const std::vector<Call> calls{{"eth_chainId", "[]"}, {"eth_call", R"([{"to":"0x1"},"latest"])"}};
    CHECK(batch_body(calls) == R"([{"jsonrpc":"2.0","id":1,"method":"eth_chainId","params":[]},)"
                               R"({"jsonrpc":"2.0","id":2,"method":"eth_call","params":[{"to":"0x1"},"latest"]}])");
}

TEST_CASE("replies come back in the order of the calls")
{
    BatchReader reader;
    for (const std::string& body : {good(), "[" + reply(2, R"("result":)" + block) + "," + reply(1, R"("result":"0x1")") + "]\n"})
    {
        auto replies = reader.read(body, 2);
        REQUIRE(replies);
        CHECK((*replies)[0].text == "0x1");
        REQUIRE((*replies)[1].block);
        CHECK((*replies)[1].block->number == 26);
        CHECK((*replies)[1].block->time == 5);
        CHECK((*replies)[1].block->hash == std::string(64, 'a'));
    }
    auto mixed = reader.read("[" + reply(1, R"("result":null)") + "," +
                                 reply(2, R"("error":{"code":3,"message":"execution reverted","data":"0x08"},"result":null)") + "," +
                                 reply(3, R"("error":{"code":-32000,"message":"m","data":{"data":"0x09"}})") + "]",
                             3);
    REQUIRE(mixed);
    CHECK((!(*mixed)[0].text && !(*mixed)[0].block && !(*mixed)[0].error));
    REQUIRE((*mixed)[1].error);
    CHECK((*mixed)[1].error->code == 3);
    CHECK((*mixed)[1].error->data == "0x08");
    CHECK((*mixed)[2].error->data == "0x09");
}

TEST_CASE("one error instead of the batch is the answer to all of it")
{
    BatchReader reader;
    for (const std::string id : {R"("id":null,)", R"("id":1,)", ""})
    {
        auto replies = reader.read(R"({"jsonrpc":"2.0",)" + id + R"("error":{"code":-32005,"message":"limit exceeded"}})", 3);
        REQUIRE(replies);
        CHECK(replies->size() == 3);
        for (const Reply& one : *replies) { CHECK(one.error->code == -32005); }
    }
}

TEST_CASE("what is no answer to our batch is refused")
{
    const std::string error = R"("error":{"code":1,"message":"m"})";
    const std::vector<std::string> rows = {
        "",
        " ",
        "null",
        "true",
        "\"x\"",
        "[]",
        "{}",
        "[{}]",
        "[[],[]]",
        "[null,null]",
        "<html>rate limited</html>",
        good() + "x",
        good() + good(),
        good().substr(0, good().size() - 1),
        good().substr(0, good().size() / 2),
        "\xef\xbb\xbf" + std::string(R"(["\xff"])"),
        std::string("[\0]", 3),
        "[" + reply(1, R"("result":"0x1")") + "]",
        "[" + reply(1, R"("result":"0x1")") + "," + reply(1, R"("result":"0x1")") + "]",
        "[" + reply(1, R"("result":"0x1")") + "," + reply(3, R"("result":"0x1")") + "]",
        "[" + reply(1, R"("result":"0x1")") + "," + reply(0, R"("result":"0x1")") + "]",
        "[" + reply(1, R"("result":"0x1")") + "," + reply(-2, R"("result":"0x1")") + "]",
        "[" + reply(1, R"("result":"0x1")") + "," + reply(2, R"("result":"0x1")") + "," + reply(3, R"("result":"0x1")") + "]",
        "[" + reply(1, R"("result":"0x1","result":"0x2")") + "," + reply(2, R"("result":"0x1")") + "]",
        "[" + reply(1, R"("result":"0x1",)" + error) + "," + reply(2, R"("result":"0x1")") + "]",
        "[" + reply(1, R"("method":"x")") + "," + reply(2, R"("result":"0x1")") + "]",
        "[" + reply(1, R"("result":5)") + "," + reply(2, R"("result":"0x1")") + "]",
        "[" + reply(1, R"("result":["0x1"])") + "," + reply(2, R"("result":"0x1")") + "]",
        "[" + reply(1, R"("result":true)") + "," + reply(2, R"("result":"0x1")") + "]",
        "[" + reply(1, R"("error":"no")") + "," + reply(2, R"("result":"0x1")") + "]",
        "[" + reply(1, R"("error":{"code":"1"})") + "," + reply(2, R"("result":"0x1")") + "]",
        "[" + reply(1, R"("error":{"message":"m"})") + "," + reply(2, R"("result":"0x1")") + "]",
        "[" + reply(1, R"("error":{"code":1,"code":2})") + "," + reply(2, R"("result":"0x1")") + "]",
        R"([{"jsonrpc":"1.0","id":1,"result":"0x1"},{"jsonrpc":"2.0","id":2,"result":"0x1"}])",
        R"([{"jsonrpc":"2.0","id":"1","result":"0x1"},{"jsonrpc":"2.0","id":2,"result":"0x1"}])",
        R"([{"jsonrpc":"2.0","id":1.5,"result":"0x1"},{"jsonrpc":"2.0","id":2,"result":"0x1"}])",
        R"({"jsonrpc":"2.0","id":1,"result":"0x1"})",
        std::string(5000, '['),
        "[" + reply(1, R"("result":{"number":"0x1"})") + "," + reply(2, R"("result":"0x1")") + "]",
        "[" + reply(1, R"("result":{"number":1,"hash":")" + hash + R"(","timestamp":"0x5"})") + "," + reply(2, R"("result":"0x1")") + "]",
        "[" + reply(1, R"("result":{"number":"0x1","hash":"0xab","timestamp":"0x5"})") + "," + reply(2, R"("result":"0x1")") + "]",
        "[" + reply(1, R"("result":{"number":"0x1","hash":")" + hash + R"(","timestamp":"5"})") + "," + reply(2, R"("result":"0x1")") + "]",
        "[" + reply(1, R"("result":{"number":"0x1","number":"0x2","hash":")" + hash + R"(","timestamp":"0x5"})") + "," +
            reply(2, R"("result":"0x1")") + "]",
    };
    BatchReader reader;
    for (const std::string& body : rows)
    {
        INFO(body.substr(0, 120));
        CHECK_FALSE(reader.read(body, 2));
        CHECK(reader.read(good(), 2)); // the reader is as good as before
    }
}

TEST_CASE("texts of errors are bounded")
{
    BatchReader reader;
    auto replies = reader.read("[" + reply(1, R"("error":{"code":1,"message":")" + std::string(100'000, 'm') + "\"}") + "]", 1);
    REQUIRE(replies);
    CHECK((*replies)[0].error->message.size() == 1024);
}

TEST_CASE("quantities")
{
    CHECK(quantity("0x0") == 0U);
    CHECK(quantity("0x7a69") == 31337U);
    CHECK(quantity("0x01") == 1U);
    CHECK(quantity("0xffffffffffffffff") == ~0ULL);
    for (const char* wrong : {"", "0x", "7a69", "0X1", "0x1g", "0x-1", "0x+1", " 0x1", "0x1 ", "0x10000000000000000", "0x0x1"})
    {
        INFO(wrong);
        CHECK_FALSE(quantity(wrong));
    }
    for (const std::uint64_t value : {0ULL, 1ULL, 255ULL, 31337ULL, ~0ULL}) { CHECK(quantity(to_quantity(value)) == value); }
    CHECK(to_quantity(26) == "0x1a");
}
