#include "services/auth/policy_commands.hpp"
#include "services/auth/policy_edit.hpp"
#include "shared/base/time.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/log/log.hpp"

namespace dstack::auth
{

namespace
{

constexpr std::size_t max_shown_text = 256 * 1024;

Error no_file()
{
    return Error{Errc::failed_precondition,
                 "the policy is not in a file: a contract on a chain decides",
                 "change the contract instead",
                 {}};
}

Result<Grant> grant_of(const std::string& expires, const std::string& reason)
{
    Grant out{0, reason};
    if (expires.empty()) { return out; }
    const auto time = parse_time(expires);
    if (!time) { return Error{Errc::invalid_argument, "expires: must be a time such as 2026-12-24T18:00:00Z", {}, {}}; }
    if (*time <= unix_ms()) { return Error{Errc::invalid_argument, "expires: " + expires + " is over already", {}, {}}; }
    out.expires_ms = *time;
    return out;
}

std::string with_end(const std::string& reason, const std::string& expires)
{
    if (expires.empty()) { return reason; }
    return "until " + expires + (reason.empty() ? "" : ": " + reason);
}

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
    bus.serve<schema::AuthRevokeImage>([this](schema::AuthRevokeImage request, CallContext context)
                                       { return revoke_image(std::move(request), std::move(context)); });
    bus.serve<schema::AuthSetPolicy>([this](schema::AuthSetPolicy request, CallContext context)
                                     { return set_policy(std::move(request), std::move(context)); });
    bus.serve<schema::AuthPolicy>([this](schema::AuthPolicy request, CallContext context)
                                  { return show_policy(std::move(request), std::move(context)); });
}

Task<Result<schema::AuthAllowApp::Reply>> PolicyCommands::allow_app(schema::AuthAllowApp request,
                                                                    bus::CallContext context)
{
    auto grant = grant_of(request.expires, request.reason);
    if (!grant) { co_return std::move(grant).error(); }
    PolicyFile::Edit edit = [app = request.app_id, hash = request.compose_hash, grant = *grant](std::string_view text)
    { return auth::allow_app(text, app, hash, grant); };
    const std::string reason = with_end(request.reason, request.expires);
    Record record = policy_record("allow_app", request.app_id, request.compose_hash, reason, context);
    co_return co_await change(std::move(edit), std::move(record));
}

Task<Result<schema::AuthAllowApp::Reply>> PolicyCommands::revoke_app(schema::AuthRevokeApp request,
                                                                     bus::CallContext context)
{
    PolicyFile::Edit edit = [app = request.app_id, hash = request.compose_hash](std::string_view text)
    { return auth::revoke_app(text, app, hash); };
    Record record = policy_record("revoke_app", request.app_id, request.compose_hash, request.reason, context);
    co_return co_await change(std::move(edit), std::move(record));
}

Task<Result<schema::AuthAllowApp::Reply>> PolicyCommands::allow_image(schema::AuthAllowImage request,
                                                                      bus::CallContext context)
{
    auto grant = grant_of(request.expires, request.reason);
    if (!grant) { co_return std::move(grant).error(); }
    PolicyFile::Edit edit = [hash = request.os_image_hash, grant = *grant](std::string_view text)
    { return auth::allow_image(text, hash, grant); };
    const std::string reason = with_end(request.reason, request.expires);
    Record record =
        policy_record("allow_image", "", "", request.os_image_hash + (reason.empty() ? "" : ": " + reason), context);
    co_return co_await change(std::move(edit), std::move(record));
}

Task<Result<schema::AuthAllowApp::Reply>> PolicyCommands::revoke_image(schema::AuthRevokeImage request,
                                                                       bus::CallContext context)
{
    PolicyFile::Edit edit = [hash = request.os_image_hash](std::string_view text)
    { return auth::revoke_image(text, hash); };
    Record record = policy_record(
        "revoke_image", "", "", request.os_image_hash + (request.reason.empty() ? "" : ": " + request.reason), context);
    co_return co_await change(std::move(edit), std::move(record));
}

Task<Result<schema::AuthAllowApp::Reply>> PolicyCommands::set_policy(schema::AuthSetPolicy request,
                                                                     bus::CallContext context)
{
    PolicyFile::Edit edit = [text = std::move(request.policy), expected = request.expected_hash](std::string_view now)
    { return auth::set_policy(now, text, expected); };
    Record record = policy_record("set_policy", "", "", request.reason, context);
    co_return co_await change(std::move(edit), std::move(record), PolicyFile::Missing::is_empty);
}

Task<Result<schema::AuthPolicy::Reply>> PolicyCommands::show_policy(schema::AuthPolicy, bus::CallContext)
{
    if (file_ == nullptr) { co_return no_file(); }
    auto snapshot = co_await policy_.current();
    schema::AuthPolicy::Reply reply;
    reply.policy_hash = snapshot->ground.policy_hash;
    reply.error = snapshot->error;
    reply.apps = snapshot->policy ? snapshot->policy->apps.size() : 0;
    reply.age_ms = policy_.age_ms();
    if (reply.policy_hash.empty()) { co_return reply; }
    auto text = co_await policy_.text(max_shown_text);
    // What was read now may be a newer file; the hash belongs to the text.
    if (text && crypto::to_hex(crypto::sha256(*text)) == reply.policy_hash) { reply.policy = std::move(*text); }
    co_return reply;
}

Task<Result<schema::AuthAllowApp::Reply>> PolicyCommands::change(PolicyFile::Edit edit, Record record)
{
    co_return co_await change(std::move(edit), std::move(record), PolicyFile::Missing::is_error);
}

Task<Result<schema::AuthAllowApp::Reply>> PolicyCommands::change(PolicyFile::Edit edit, Record record,
                                                                 PolicyFile::Missing missing)
{
    if (file_ == nullptr) { co_return no_file(); }
    auto changed = co_await policy_.change(std::move(edit), missing);
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
