// dstack allow | revoke: entries of the policy that the auth process decides by
#include "bus/schema/auth.hpp"
#include "bus/schema/deploy.hpp"
#include "services/dstack/document.hpp"
#include "services/dstack/exit_code.hpp"
#include "services/dstack/text.hpp"
#include "services/dstack/verbs.hpp"
#include "shared/base/time.hpp"
#include <algorithm>
#include <nlohmann/json.hpp>

namespace dstack::cli
{

namespace
{

using Reply = Result<schema::AuthAllowApp::Reply>;

bool is_app_id(std::string_view text)
{
    if (text.starts_with("0x") || text.starts_with("0X")) { text.remove_prefix(2); }
    const auto hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); };
    return text.size() == 40 && std::all_of(text.begin(), text.end(), hex);
}

/// The app id behind a name; an id is one already, of an app that need not be here.
Task<Result<std::string>> app_id_of(Session& session)
{
    const std::string app = session.options().app;
    if (app.empty() || is_app_id(app)) { co_return app; }
    schema::AppInfo question;
    question.app = app;
    auto options = session.call_options();
    auto reply = co_await session.bus().call(std::move(question), std::move(options));
    if (!reply) { co_return std::move(reply).error(); }
    co_return reply->app.app_id;
}

Task<Reply> send_app(Session& session, std::string app_id, std::string expires)
{
    const Options& o = session.options();
    auto options = session.call_options();
    if (o.verb == "revoke")
    {
        schema::AuthRevokeApp command;
        command.app_id = std::move(app_id);
        command.compose_hash = o.hash;
        command.reason = o.reason;
        co_return co_await session.bus().call(std::move(command), std::move(options));
    }
    schema::AuthAllowApp command;
    command.app_id = std::move(app_id);
    command.compose_hash = o.hash;
    command.reason = o.reason;
    command.expires = std::move(expires);
    co_return co_await session.bus().call(std::move(command), std::move(options));
}

Task<Reply> send_image(Session& session, std::string expires)
{
    const Options& o = session.options();
    auto options = session.call_options();
    if (o.verb == "revoke")
    {
        schema::AuthRevokeImage command;
        command.os_image_hash = o.image;
        command.reason = o.reason;
        co_return co_await session.bus().call(std::move(command), std::move(options));
    }
    schema::AuthAllowImage command;
    command.os_image_hash = o.image;
    command.reason = o.reason;
    command.expires = std::move(expires);
    co_return co_await session.bus().call(std::move(command), std::move(options));
}

/// "compose hash dddd of app 1111 until 2026-..."
std::string subject_of(const Options& o, const std::string& app_id, const std::string& expires)
{
    std::string out;
    if (!o.image.empty()) { out = "OS image " + o.image; }
    else { out = (o.hash.empty() ? "every compose hash" : "compose hash " + o.hash) + " of app " + app_id; }
    if (!expires.empty()) { out += " until " + expires; }
    return printable(out);
}

int say(Session& session, const std::string& app_id, const std::string& expires, const schema::AuthAllowApp::Reply* reply)
{
    const Options& o = session.options();
    if (o.json)
    {
        nlohmann::json data{{"verb", o.verb}, {"changed", reply != nullptr && reply->changed}, {"dryRun", reply == nullptr}};
        if (!o.image.empty()) { data["osImageHash"] = o.image; }
        else
        {
            data["appId"] = app_id;
            data["composeHash"] = o.hash;
        }
        if (!expires.empty()) { data["expires"] = expires; }
        if (reply != nullptr) { data["policyHash"] = reply->policy_hash; }
        session.out(document("policy_change", data.dump()));
        return exit_ok;
    }
    const bool allow = o.verb == "allow";
    const std::string subject = subject_of(o, app_id, expires);
    if (reply == nullptr) { session.out("would " + o.verb + " " + subject + "\n"); }
    else if (reply->changed) { session.out((allow ? "allowed " : "revoked ") + subject + "\n"); }
    else { session.out((allow ? "already allowed: " : "already not allowed: ") + subject + "\n"); }
    if (reply != nullptr) { session.note("policy " + reply->policy_hash); }
    return exit_ok;
}

} // namespace

Task<int> change_policy(Session& session)
{
    const Options& o = session.options();
    std::string expires;
    if (o.for_ms != 0) { expires = rfc3339(unix_ms() + o.for_ms); }
    else if (o.until_ms != 0) { expires = rfc3339(o.until_ms); }
    auto app_id = co_await app_id_of(session);
    if (!app_id) { co_return session.fail(app_id.error()); }
    if (o.dry_run) { co_return say(session, *app_id, expires, nullptr); }
    if (o.image.empty())
    {
        auto reply = co_await send_app(session, *app_id, expires);
        if (!reply) { co_return session.fail(reply.error()); }
        co_return say(session, *app_id, expires, &*reply);
    }
    auto reply = co_await send_image(session, expires);
    if (!reply) { co_return session.fail(reply.error()); }
    co_return say(session, *app_id, expires, &*reply);
}

} // namespace dstack::cli
