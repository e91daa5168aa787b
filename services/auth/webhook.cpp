#include "services/auth/webhook.hpp"
#include "services/auth/json_text.hpp"
#include "shared/base/time.hpp"
#include "shared/log/log.hpp"
#include <chrono>

namespace dstack::auth
{

namespace
{

/// Error bodies are short ASCII: the KMS cuts them at 512 bytes, and breaks when that splits a character (E.4).
http::Response refuse(int status, std::string_view allow)
{
    http::Response out = http::text_response(status, std::string{http::reason_phrase(status)} + "\n");
    if (!allow.empty()) { out.headers.set("Allow", std::string{allow}); }
    return out;
}

} // namespace

Task<http::Response> Webhook::answer(http::Request request)
{
    const std::string path{request.path()};
    const std::string method = request.method;
    const bool reads = method == "GET" || method == "HEAD";
    if (path == "/bootAuth/app" || path == "/bootAuth/kms")
    {
        if (method != "POST") { co_return refuse(405, "POST"); }
        const Kind kind = path == "/bootAuth/app" ? Kind::app : Kind::kms;
        co_return co_await decide_boot(kind, std::move(request));
    }
    if (path == "/" || path == "/health")
    {
        if (!reads) { co_return refuse(405, "GET, HEAD"); }
        if (path == "/health") { co_return co_await tell_health(); }
        co_return co_await tell_info();
    }
    co_return refuse(404, "");
}

Task<http::Response> Webhook::decide_boot(Kind kind, http::Request request)
{
    const auto began = std::chrono::steady_clock::now();
    Record record;
    record.time_ms = unix_ms();
    record.kind = to_string(kind);
    record.agent = printable(request.headers.get("User-Agent").substr(0, 80));
    std::shared_ptr<const Ground> ground;
    int status = 200;
    auto boot = reader_.read(request.body);
    if (boot)
    {
        record.boot = std::move(*boot);
        auto judgement = backend_.decide_now(kind, *record.boot);
        if (!judgement)
        {
            auto waited = co_await backend_.decide(kind, *record.boot);
            judgement = std::move(waited);
        }
        record.verdict = std::move(judgement->verdict);
        ground = std::move(judgement->ground);
    }
    else
    {
        status = 400;
        record.verdict = deny("request", "invalid authorization request: " + boot.error().message);
        ground = backend_.ground();
    }
    record.policy_hash = ground->policy_hash;
    const auto took = std::chrono::steady_clock::now() - began;
    record.latency_us = static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(took).count());
    Verdict verdict = record.verdict;
    if (ledger_ == nullptr) { co_return http::json_response(status, answer_body(verdict, ground->gateway_app_id)); }
    auto written = co_await ledger_->append(record);
    if (!written)
    {
        log::error("decision not recorded", {{"error", written.error().message}});
        verdict = deny("ledger", "the decision could not be recorded: " + printable(written.error().message) +
                                     "; every boot is denied until it can");
    }
    else
    {
        const std::string_view app_id = record.boot ? std::string_view{record.boot->app_id} : "";
        if (verdict.allowed)
        {
            log::info("allowed", {{"kind", record.kind}, {"app_id", app_id}, {"decision", *written}});
        }
        else
        {
            log::info("denied",
                      {{"kind", record.kind}, {"app_id", app_id}, {"decision", *written}, {"rule", verdict.rule}});
        }
    }
    co_return http::json_response(status, answer_body(verdict, ground->gateway_app_id));
}

Task<http::Response> Webhook::tell_info()
{
    auto info = co_await backend_.info();
    co_return http::json_response(info.status, std::move(info.body));
}

Task<http::Response> Webhook::tell_health()
{
    auto health = co_await backend_.health();
    const std::string ledger = ledger_ == nullptr ? "" : printable(ledger_->trouble());
    const bool fine = health.trouble.empty() && ledger.empty();
    std::string body = fine ? R"({"status":"ok","policy":)" : R"({"status":"denying everything","policy":)";
    append_json_string(body, health.trouble.empty() ? "ok" : printable(health.trouble));
    body += R"(,"policyHash":)";
    append_json_string(body, health.policy_hash);
    body += R"(,"ledger":)";
    append_json_string(body, ledger_ == nullptr ? "none" : ledger.empty() ? "ok" : ledger);
    body += R"(,"ledgerWarning":)";
    append_json_string(body, ledger_ == nullptr ? "" : printable(ledger_->warning()));
    body += R"(,"decisions":)" + std::to_string(ledger_ == nullptr ? 0 : ledger_->sequence()) + "}";
    co_return http::json_response(fine ? 200 : 503, std::move(body));
}

} // namespace dstack::auth
