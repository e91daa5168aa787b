#include "services/auth/webhook.hpp"
#include "services/auth/json_text.hpp"
#include "shared/base/time.hpp"
#include "shared/log/log.hpp"
#include <algorithm>
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

std::string printable(std::string_view text)
{
    std::string out{text.substr(0, 300)};
    std::replace_if(
        out.begin(), out.end(), [](char c) { return c < 0x20 || c > 0x7e; }, '?');
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
    auto snapshot = co_await policy_.current();
    look_at(snapshot);
    Record record;
    record.time_ms = unix_ms();
    record.kind = to_string(kind);
    record.policy_hash = snapshot->hash;
    record.agent = printable(request.headers.get("User-Agent").substr(0, 80));
    int status = 200;
    auto boot = reader_.read(request.body);
    if (!boot)
    {
        status = 400;
        record.verdict = deny("request", "invalid authorization request: " + boot.error().message);
    }
    else if (!snapshot->policy)
    {
        record.verdict = deny("policy", "policy is not usable: " + printable(snapshot->error) +
                                            "; every boot is denied until it is repaired");
    }
    else { record.verdict = decide(kind, *boot, *snapshot->policy); }
    if (boot) { record.boot = std::move(*boot); }
    const auto took = std::chrono::steady_clock::now() - began;
    record.latency_us = static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(took).count());
    Verdict verdict = record.verdict;
    auto written = co_await ledger_.append(record);
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
    const std::string gateway = snapshot->policy ? snapshot->policy->gateway_app_id : "";
    co_return http::json_response(status, answer_body(verdict, gateway));
}

Task<http::Response> Webhook::tell_info()
{
    auto snapshot = co_await policy_.current();
    look_at(snapshot);
    if (snapshot->policy) { co_return http::json_response(200, info_body(*snapshot->policy)); }
    std::string body = R"({"status":"error","message":)";
    append_json_string(body, "policy is not usable: " + printable(snapshot->error));
    body += '}';
    co_return http::json_response(500, std::move(body));
}

Task<http::Response> Webhook::tell_health()
{
    auto snapshot = co_await policy_.current();
    look_at(snapshot);
    const bool fine = snapshot->policy && ledger_.trouble().empty();
    std::string body = fine ? R"({"status":"ok","policy":)" : R"({"status":"denying everything","policy":)";
    append_json_string(body, snapshot->policy ? "ok" : printable(snapshot->error));
    body += R"(,"policyHash":)";
    append_json_string(body, snapshot->hash);
    body += R"(,"ledger":)";
    append_json_string(body, ledger_.trouble().empty() ? "ok" : printable(ledger_.trouble()));
    body += R"(,"ledgerWarning":)";
    append_json_string(body, printable(ledger_.warning()));
    body += R"(,"decisions":)" + std::to_string(ledger_.sequence()) + "}";
    co_return http::json_response(fine ? 200 : 503, std::move(body));
}

void Webhook::look_at(std::shared_ptr<const Snapshot> snapshot)
{
    const bool known =
        snapshot->hash == ledger_.last_policy_hash() || (!snapshot->hash.empty() && snapshot->hash == expected_hash_);
    if (noting_ || policy_.changing() || known) { return; }
    noting_ = true;
    scope_.spawn(note_policy(std::move(snapshot)));
}

Task<> Webhook::note_policy(std::shared_ptr<const Snapshot> snapshot, bool created)
{
    noting_ = true;
    Record record;
    record.time_ms = unix_ms();
    record.kind = "policy";
    record.policy_hash = snapshot->hash;
    record.change = created ? "created" : snapshot->policy ? "external" : "invalid";
    record.reason = printable(snapshot->error);
    auto written = co_await ledger_.append(record);
    noting_ = false;
    if (created) { log::info("policy created", {{"file", policy_.path()}}); }
    else if (snapshot->policy) { log::info("policy file changed by somebody else", {{"policy", snapshot->hash}}); }
    else { log::error("policy file not usable", {{"error", snapshot->error}}); }
    if (!written) { log::error("policy change not recorded", {{"error", written.error().message}}); }
}

} // namespace dstack::auth
