#include "services/guest-agent/config.hpp"
#include "services/guest-agent/info.hpp"
#include "services/guest-agent/notify_body.hpp"
#include "tests/catch.hpp"
#include <nlohmann/json.hpp>

using namespace dstack;
using namespace dstack::guest;
using nlohmann::json;

TEST_CASE("a report fits into what the host reads")
{
    CHECK(notify_body("boot.progress", "done") == R"({"event":"boot.progress","payload":"done"})");
    for (const std::string& text : {std::string(10'000, 'x'), std::string(10'000, '"'),
                                    []
                                    {
                                        std::string out;
                                        for (int i = 0; i < 3000; ++i) { out += "\u00e9"; }
                                        return out;
                                    }()})
    {
        const std::string body = notify_body("boot.error", text);
        CHECK(body.size() <= 4096);
        const json parsed = json::parse(body, nullptr, false);
        REQUIRE(parsed.is_object());
        const std::string payload = parsed["payload"];
        CHECK(payload.size() > 1000);
        CHECK(payload.ends_with("..."));
        CHECK(payload.find("\ufffd") == std::string::npos);
    }
    CHECK(json::parse(notify_body("boot.error", "\xff\xfe"), nullptr, false).is_object());
}

TEST_CASE("an RPC's reason is quoted as it is")
{
    CHECK(rpc_error("{\n  \"error\": \"App not allowed: Boot denied: rule x\"\n}") ==
          "App not allowed: Boot denied: rule x");
    CHECK(rpc_error("plain") == "plain");
    CHECK(rpc_error("") == "no reason given");
    CHECK(rpc_error(std::string(5000, 'x')).size() == 512);
    CHECK(one_line({Errc::internal, "what", "next", {}}) == "what (next)");
    CHECK(one_line({Errc::internal, "what", {}, {}}) == "what");
}

TEST_CASE("the external port answers Info and Version")
{
    BootPlan plan;
    plan.app_id = std::string(40, 'a');
    plan.compose_hash = std::string(64, 'b');
    plan.app_compose = "{}";
    http::Request request;
    request.method = "GET";
    request.target = "/prpc/Worker.Info";
    const auto info = answer_info(request, &plan);
    CHECK(info.status == 200);
    const json body = json::parse(info.body);
    CHECK(body["app_id"] == plan.app_id);
    CHECK(body["cloud_product"] == "development guest, attestation simulated");
    CHECK(json::parse(body["tcb_info"].get<std::string>())["compose_hash"] == plan.compose_hash);

    plan.public_tcbinfo = false;
    CHECK(json::parse(answer_info(request, &plan).body)["tcb_info"] == "");
    CHECK(answer_info(request, nullptr).status == 400);
    request.target = "/prpc/Version?json";
    CHECK(answer_info(request, nullptr).status == 200);
    request.target = "/prpc/Nope";
    CHECK(json::parse(answer_info(request, &plan).body)["error"] == "Service not found: Nope");
    request.target = "/else";
    CHECK(answer_info(request, &plan).status == 404);
}

TEST_CASE("the configuration is strict")
{
    CHECK(parse_config("")->port == 8090);
    CHECK(parse_config("[agent]\nport = 9\nstop_grace_ms = 5\n")->stop_grace == std::chrono::milliseconds{5});
    CHECK_FALSE(parse_config("[agent]\nprt = 9\n"));
    CHECK_FALSE(parse_config("[agent]\nport = 0\n"));
}
