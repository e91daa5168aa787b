#include "services/auth/audit_commands.hpp"
#include "services/auth/audit.hpp"
#include "shared/log/log.hpp"

namespace dstack::auth
{

namespace
{

constexpr milliseconds publish_limit{5'000};

Error no_ledger() { return Error{Errc::failed_precondition, "this dstack-auth keeps no ledger", "give it one: ledger_dir in its configuration", {}}; }

} // namespace

void AuditCommands::serve(bus::Client& bus)
{
    using bus::CallContext;
    bus.serve<schema::AuthAudit>([this](schema::AuthAudit request, CallContext context) { return audit(std::move(request), std::move(context)); });
    bus.serve<schema::AuthExplain>([this](schema::AuthExplain request, CallContext context) { return why(std::move(request), std::move(context)); });
    bus.serve<schema::AuthTestPolicy>([this](schema::AuthTestPolicy request, CallContext context) { return test(std::move(request), std::move(context)); });
    bus.serve<schema::AuthDecisions>([this](schema::AuthDecisions request, CallContext context) { return decisions(std::move(request), std::move(context)); });
}

Task<std::shared_ptr<const Snapshot>> AuditCommands::policy_now()
{
    if (policy_ == nullptr) { co_return nullptr; }
    co_return co_await policy_->current();
}

Task<Result<schema::AuthAudit::Reply>> AuditCommands::audit(schema::AuthAudit request, bus::CallContext)
{
    if (ledger_ == nullptr) { co_return no_ledger(); }
    auto job = [now = ledger_->snapshot(), request = std::move(request)] { return find_records(now, request); };
    co_return co_await offload(loop_, job);
}

Task<Result<schema::AuthExplain::Reply>> AuditCommands::why(schema::AuthExplain request, bus::CallContext)
{
    if (ledger_ == nullptr) { co_return no_ledger(); }
    auto policy = co_await policy_now();
    const std::string path = policy_ == nullptr ? "" : policy_->path();
    auto job = [now = ledger_->snapshot(), request = std::move(request), policy, path] { return explain(now, request, policy, path); };
    auto reply = co_await offload(loop_, job);
    if (!reply || policy) { co_return reply; }
    // The contract is asked, as for a boot, and nothing is recorded.
    EntryReader reader;
    auto decided = reader.read_decision(reply->record);
    if (!decided || !decided->boot) { co_return reply; }
    const Kind kind = decided->entry.kind == "kms" ? Kind::kms : Kind::app;
    auto judged = co_await backend_.decide(kind, *decided->boot);
    reply->same_policy = judged.ground->policy_hash == decided->entry.policy_hash;
    reply->allowed_now = judged.verdict.allowed;
    reply->rule_now = judged.verdict.rule;
    reply->reason_now = judged.verdict.reason;
    co_return reply;
}

Task<Result<schema::AuthTestPolicy::Reply>> AuditCommands::test(schema::AuthTestPolicy request, bus::CallContext)
{
    if (ledger_ == nullptr) { co_return no_ledger(); }
    auto policy = co_await policy_now();
    auto job = [now = ledger_->snapshot(), request = std::move(request), policy] { return test_policy(now, request, policy); };
    co_return co_await offload(loop_, job);
}

Task<Result<schema::AuthDecisions::Reply>> AuditCommands::decisions(schema::AuthDecisions request, bus::CallContext)
{
    if (ledger_ == nullptr) { co_return no_ledger(); }
    if (request.limit < 1 || request.limit > 1000)
    {
        co_return Error{Errc::invalid_argument, "limit: must be in 1..1000", {}, {}};
    }
    auto found = co_await ledger_->newest(std::move(request.app_id), request.limit);
    if (!found) { co_return std::move(found).error(); }
    schema::AuthDecisions::Reply reply;
    reply.decisions = std::move(*found);
    co_return reply;
}

Task<> AuditCommands::watch(Daemon& daemon, bus::Client* bus)
{
    std::string told;
    while (!ledger_->damage())
    {
        ledger_->changed().reset();
        const std::string& trouble = ledger_->trouble();
        schema::AuthLedgerChanged now;
        now.state = !trouble.empty() ? "failing" : ledger_->warning().empty() ? "ok" : "low";
        now.reason = trouble.empty() ? ledger_->warning() : trouble;
        now.free_bytes = ledger_->free_bytes();
        now.denied = ledger_->denied();
        const std::string telling = now.state == "ok" ? "" : now.state + now.reason;
        if (telling == told)
        {
            co_await ledger_->changed().wait();
            continue;
        }
        told = telling;
        daemon.status(now.state == "ok"        ? std::string{"serving"}
                      : now.state == "failing" ? "unhealthy: every boot is denied: " + now.reason
                                               : now.reason);
        if (now.state == "failing") { log::error("ledger cannot be written: every boot is denied", {{"error", now.reason}}); }
        else if (now.state == "low") { log::warn("ledger needs attention", {{"reason", now.reason}}); }
        else { log::info("ledger is well again"); }
        if (bus == nullptr) { continue; }
        auto event = bus::Client::make_event(now);
        auto sent = co_await bus->publish_raw(std::move(event), publish_limit);
        if (!sent) { log::warn("event not published", {{"error", sent.error().message}}); }
    }
}

} // namespace dstack::auth
