// The HTTP path of the auth process without its sockets: bytes become requests, bodies become questions, questions answers.
// An answer is always JSON with the three keys that the KMS needs, and nothing is allowed that the policy does not name.
#include "services/auth/decide.hpp"
#include "shared/http/parser.hpp"
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>

using namespace dstack::auth;

namespace
{

void check(bool holds)
{
    if (!holds) { std::abort(); }
}

const std::string compose(64, 'd');

const Policy& policy()
{
    static const Policy all = *parse_policy(R"({"osImages":{"any":true},"allowedTcbStatuses":{"any":true},"allowedAdvisoryIds":["A"],
        "gatewayAppId":"gw","kms":{"mrAggregated":[],"allowAnyDevice":true},"apps":{")" + std::string(40, '1') +
                                            R"(":{"composeHashes":[")" + compose + R"("],"allowAnyDevice":true}}})");
    return all;
}

void answer(std::string_view body)
{
    BootInfo boot;
    const auto read = read_boot_info(body, boot);
    std::string text;
    if (!read)
    {
        check(!read.error().message.empty() && read.error().message.size() < 512);
        text = answer_body(deny("request", "invalid authorization request: " + read.error().message), "gw");
    }
    else
    {
        check(nlohmann::json::accept(body.begin(), body.end()));
        check(boot.compose_hash.size() == 64 && boot.app_id.size() == 40 && boot.mr_aggregated.size() == 64);
        const Verdict verdict = decide(Kind::app, boot, policy(), 1);
        check(!verdict.allowed || (boot.compose_hash == compose && boot.app_id == std::string(40, '1')));
        check(verdict.allowed == verdict.reason.empty());
        check(!decide(Kind::kms, boot, policy(), 1).allowed);
        text = answer_body(verdict, policy().gateway_app_id);
    }
    const auto json = nlohmann::json::parse(text, nullptr, false);
    check(json.is_object() && json["isAllowed"].is_boolean() && json["gatewayAppId"].is_string() && json["reason"].is_string());
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size)
{
    if (size > 8192) { return 0; }
    std::string_view bytes{reinterpret_cast<const char*>(data), size};
    answer(bytes);
    static const dstack::http::Limits limits;
    dstack::http::RequestParser parser{limits, nullptr};
    while (!bytes.empty() && !parser.failed())
    {
        bytes.remove_prefix(parser.feed(bytes));
        if (!parser.complete()) { break; }
        answer(parser.request().body);
        parser.next();
    }
    return 0;
}
