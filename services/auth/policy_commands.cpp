#include "services/auth/policy_commands.hpp"
#include "services/auth/policy_edit.hpp"
#include "shared/base/time.hpp"
#include "shared/log/log.hpp"

namespace dstack::auth
{

namespace
{
Record policy_record(std::string change, std::string app_id, std::string compose_hash, const std::string& reason,
                     const bus::CallContext& context)
{
    Record out;
    out.time_ms = unix_ms();
    out.kind = "policy";
    out.change = std::move(change);
    out.app_id = std::move(app_id);
    out.compose_hash = std::move(compose_hash);
    out.reason = reason.substr(0, 1000);
    out.by = context.caller;
    return out;
}
} // namespace

void PolicyCommands::serve(bus::Client& bus)
{
    using bus::CallContext;
    bus.serve<schema::AuthAllowApp>([this](schema::AuthAllowApp request, CallContext context)
                                    { return allow_app(std::move(request), std::move(context)); });
    bus.serve<schema::AuthRevokeApp>([this](schema::AuthRevokeApp request, CallContext context)
                                     { return revoke_app(std::move(request), std::move(context)); });
    bus.serve<schema::AuthAllowImage>([this](schema::AuthAllowImage request, CallContext context)
                                      { return allow_image(std::move(request), std::move(context)); });
}

Task<Result<schema::AuthAllowApp::Reply>> PolicyCommands::allow_app(schema::AuthAllowApp request, bus::CallContext context)
{
    PolicyFile::Edit edit = [app = request.app_id, hash = request.compose_hash](std::string_view text)
    { return auth::allow_app(text, app, hash); };
    Record record = policy_record("allow_app", request.app_id, request.compose_hash, request.reason, context);
    co_return co_await change(std::move(edit), std::move(record));
}

Task<Result<schema::AuthAllowApp::Reply>> PolicyCommands::revoke_app(schema::AuthRevokeApp request, bus::CallContext context)
{
    PolicyFile::Edit edit = [app = request.app_id, hash = request.compose_hash](std::string_view text)
    { return auth::revoke_app(text, app, hash); };
    Record record = policy_record("revoke_app", request.app_id, request.compose_hash, request.reason, context);
    co_return co_await change(std::move(edit), std::move(record));
}

Task<Result<schema::AuthAllowApp::Reply>> PolicyCommands::allow_image(schema::AuthAllowImage request, bus::CallContext context)
{
    PolicyFile::Edit edit = [hash = request.os_image_hash](std::string_view text)
    { return auth::allow_image(text, hash); };
    Record record = policy_record(
        "allow_image", "", "", request.os_image_hash + (request.reason.empty() ? "" : ": " + request.reason), context);
    co_return co_await change(std::move(edit), std::move(record));
}

Task<Result<schema::AuthAllowApp::Reply>> PolicyCommands::change(PolicyFile::Edit edit, Record record)
{
    if (file_ == nullptr)
    {
        co_return Error{Errc::failed_precondition, "the policy is not in a file: a contract on a chain decides",
                        "change the contract instead", {}};
    }
    auto changed = co_await policy_.change(std::move(edit));
    if (!changed) { co_return std::move(changed).error(); }
    if (changed->changed)
    {
        log::info("policy changed",
                  {{"change", record.change}, {"app_id", record.app_id}, {"by", record.by}, {"policy", changed->hash}});
        record.policy_hash = changed->hash;
        file_->expect_policy(changed->hash);
        auto written = co_await ledger_->append(std::move(record));
        file_->expect_policy("");
        // If that failed, the next look at the file finds that the newest record is about another one, and writes that
        // down.
        if (!written)
        {
            co_return std::move(written).error().within("the policy was changed, but that could not be recorded");
        }
    }
    schema::AuthAllowApp::Reply reply;
    reply.changed = changed->changed;
    reply.policy_hash = changed->hash;
    co_return reply;
}

} // namespace dstack::auth
