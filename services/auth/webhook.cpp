#include "services/auth/webhook.hpp"
#include "services/auth/json_text.hpp"
#include "shared/base/time.hpp"
#include "shared/log/log.hpp"
#include <chrono>

namespace dstack::auth
{

namespace
{

constexpr std::uint32_t max_logged = 100; ///< decisions in one second

/// Error bodies are short ASCII: the KMS cuts them at 512 bytes, and breaks when that splits a character (E.4).
http::Response refuse(int status, std::string_view allow)
{
    http::Response out = http::text_response(status, std::string{http::reason_phrase(status)} + "\n");
    if (!allow.empty()) { out.headers.set("Allow", std::string{allow}); }
    return out;
}

Task<http::Response> at_once(http::Response response) { co_return response; }

std::uint64_t us_since(std::chrono::steady_clock::time_point began)
{
    const auto took = std::chrono::steady_clock::now() - began;
    return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(took).count());
}

} // namespace

Task<http::Response> Webhook::answer(http::Request request)
{
    const std::string_view path = request.path();
    const bool app = path == "/bootAuth/app";
    if (app || path == "/bootAuth/kms")
    {
        if (request.method != "POST") { return at_once(refuse(405, "POST")); }
        return decide_boot(app ? Kind::app : Kind::kms, std::move(request));
    }
    const bool known = path == "/" || path == "/health" || path == "/metrics";
    if (!known) { return at_once(refuse(404, "")); }
    if (request.method != "GET" && request.method != "HEAD") { return at_once(refuse(405, "GET, HEAD")); }
    if (path == "/health") { return tell_health(); }
    if (path == "/metrics") { return at_once(tell_metrics()); }
    return tell_info();
}

Task<http::Response> Webhook::decide_boot(Kind kind, http::Request request)
{
    const auto began = Clock::now();
    Record record;
    record.time_ms = unix_ms();
    record.kind = to_string(kind);
    record.agent = printable(request.headers.get("User-Agent").substr(0, 80));
    std::shared_ptr<const Ground> ground;
    record.boot.emplace();
    auto read = read_boot_info(request.body, *record.boot);
    if (read)
    {
        // Decided together with all others that are read in this turn: one look at the policy is behind the reading of
        // each, and serves them all.
        const std::uint64_t number = ++asked_;
        co_await next_turn(loop_);
        if (looked_ < number)
        {
            backend_.look();
            looked_ = asked_;
        }
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
        record.verdict = deny("request", "invalid authorization request: " + read.error().message);
        record.boot.reset();
        ground = backend_.ground();
    }
    record.policy_hash = ground->policy_hash;
    record.latency_us = us_since(began);
    if (ledger_ == nullptr) { co_return tell(record, 0, record.verdict, *ground, began); }
    auto written = co_await ledger_->append(record);
    if (written) { co_return tell(record, *written, record.verdict, *ground, began); }
    const std::string why = written.error().message;
    const Verdict verdict =
        deny("ledger", "the decision could not be recorded: " + printable(why) + "; every boot is denied until it can");
    co_return tell(record, 0, verdict, *ground, began);
}

/// At most so many lines in a second: the ledger has every decision, and a flood of questions must not become one of
/// lines.
bool Webhook::may_log(Clock::time_point now)
{
    if (now - log_second_ >= std::chrono::seconds{1})
    {
        if (not_logged_ > 0) { log::info("decisions not logged", {{"count", not_logged_}}); }
        log_second_ = now;
        logged_ = 0;
        not_logged_ = 0;
    }
    if (logged_ < max_logged)
    {
        ++logged_;
        return true;
    }
    ++not_logged_;
    return false;
}

http::Response Webhook::tell(const Record& record, std::uint64_t sequence, const Verdict& verdict, const Ground& ground,
                             Clock::time_point began)
{
    const auto now = Clock::now();
    const auto took = std::chrono::duration_cast<std::chrono::microseconds>(now - began);
    metrics_.count(record.kind, verdict.rule, verdict.allowed, static_cast<std::uint64_t>(took.count()));
    if (may_log(now))
    {
        const std::string_view app_id = record.boot ? std::string_view{record.boot->app_id} : "";
        if (verdict.allowed) { log::info("allowed", {{"kind", record.kind}, {"app_id", app_id}, {"decision", sequence}}); }
        else if (verdict.rule == "ledger") { log::error("decision not recorded", {{"error", verdict.reason}}); }
        else
        {
            log::info("denied",
                      {{"kind", record.kind}, {"app_id", app_id}, {"decision", sequence}, {"rule", verdict.rule}});
        }
    }
    const int status = record.boot ? 200 : 400;
    return http::json_response(status, answer_body(verdict, ground.gateway_app_id));
}

http::Response Webhook::tell_metrics() const
{
    std::string body;
    metrics_.append_to(body);
    backend_.append_metrics(body);
    if (ledger_ != nullptr)
    {
        append_gauge(body, "dstack_auth_ledger_ok", "1 when decisions can be recorded; 0: every boot is denied.",
                     ledger_->trouble().empty() ? "1" : "0");
        append_gauge(body, "dstack_auth_ledger_records", "The number of the newest record.", std::to_string(ledger_->sequence()));
        append_gauge(body, "dstack_auth_ledger_lag_records", "Records that wait for the disk.", std::to_string(ledger_->lag()));
        append_gauge(body, "dstack_auth_ledger_free_bytes", "Free on the ledger's disk.", std::to_string(ledger_->free_bytes()));
    }
    body += "# EOF\n";
    http::Response out;
    out.headers.set("Content-Type", "application/openmetrics-text; version=1.0.0; charset=utf-8");
    out.body = std::move(body);
    return out;
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
