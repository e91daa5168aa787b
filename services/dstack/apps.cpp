#include "bus/schema/deploy.hpp"
#include "services/dstack/document.hpp"
#include "services/dstack/exit_code.hpp"
#include "services/dstack/follow.hpp"
#include "services/dstack/text.hpp"
#include "services/dstack/verbs.hpp"
#include <chrono>
#include <cstdio>
#include <unistd.h>

namespace dstack::cli
{

namespace
{
constexpr milliseconds operation_limit{330'000};

std::uint64_t now_ms()
{
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    return static_cast<std::uint64_t>(std::chrono::duration_cast<milliseconds>(now).count());
}

std::string ports_text(const std::vector<schema::PortMapping>& ports)
{
    std::string out;
    for (const auto& port : ports)
    {
        const bool six = port.host_address.find(':') != std::string::npos;
        out += (out.empty() ? "" : ",") + (six ? "[" + port.host_address + "]" : port.host_address) + ":" +
               (port.host_port == 0 ? "auto" : std::to_string(port.host_port)) + "->" + std::to_string(port.vm_port) +
               (port.protocol == "tcp" ? "" : "/" + port.protocol);
    }
    return out.empty() ? "-" : out;
}

std::string or_dash(const std::string& text) { return text.empty() ? "-" : printable(text); }

std::string info_text(const schema::App& app)
{
    std::vector<std::vector<std::string>> rows{
        {"name:", printable(app.name)},
        {"state:", printable(app.state) + " (" + printable(app.evidence) + ", seen " + age(app.observed_at, now_ms()) + " ago)"},
        {"url:", or_dash(url_of(app.ports))},
        {"ports:", ports_text(app.ports)},
        {"app id:", app.app_id},
        {"compose hash:", app.compose_hash},
        {"vm id:", or_dash(app.vm_id)},
        {"instance id:", or_dash(app.instance_id)},
        {"image:", or_dash(app.image)},
        {"cid:", app.cid == 0 ? "-" : std::to_string(app.cid)},
        {"boot progress:", or_dash(app.boot_progress)},
        {"boot error:", or_dash(app.boot_error)},
        {"created:", app.created_at},
        {"operation:", or_dash(app.operation)},
    };
    return table(rows);
}

/// The verb in the past tense.
std::string_view done_word(std::string_view verb)
{
    if (verb == "stop") { return "stopped"; }
    return verb == "start" ? "started" : "removed";
}

/// True to go on; false with the reason in `refusal`.
bool confirmed(const Session& session, Error& refusal)
{
    const Options& options = session.options();
    if (options.verb != "rm" || options.yes) { return true; }
    if (options.no_input || options.json || ::isatty(STDIN_FILENO) == 0)
    {
        refusal = Error{Errc::invalid_argument, "rm removes the app's VM and its disk for good, and there is nobody to ask", "pass --yes", {}};
        return false;
    }
    std::fprintf(stderr, "remove %s, its VM and its disk? [y/N] ", printable(options.app).c_str());
    std::fflush(stderr);
    const int answer = std::getchar();
    if (answer == 'y' || answer == 'Y') { return true; }
    refusal = Error{Errc::cancelled, "nothing was removed", {}, {}};
    return false;
}

Task<Result<schema::OperationBegun>> send(Session& session)
{
    const Options& options = session.options();
    auto call = session.call_options(30'000);
    if (options.verb == "stop")
    {
        schema::AppStop command{options.app, options.force};
        co_return co_await session.bus().call(std::move(command), std::move(call));
    }
    if (options.verb == "start")
    {
        schema::AppStart command{options.app};
        co_return co_await session.bus().call(std::move(command), std::move(call));
    }
    schema::AppRemove command{options.app};
    co_return co_await session.bus().call(std::move(command), std::move(call));
}

int say_change(Session& session, const std::string& name, const schema::OperationBegun& begun, std::string_view state, std::string_view evidence)
{
    if (session.options().json) { session.out(document("operation", begun_json(name, begun, state, evidence))); }
    else { session.out(std::string{state} + " " + printable(name) + "\n"); }
    if (!evidence.empty()) { session.note(evidence); }
    return exit_ok;
}
} // namespace

Task<int> list_apps(Session& session)
{
    schema::AppList question;
    auto options = session.call_options();
    auto reply = co_await session.bus().call(std::move(question), std::move(options));
    if (!reply) { co_return session.fail(reply.error()); }
    if (session.options().json)
    {
        session.out(document("apps", apps_json(reply->apps)));
        co_return exit_ok;
    }
    if (reply->apps.empty())
    {
        session.note("no apps deployed");
        co_return exit_ok;
    }
    std::vector<std::vector<std::string>> rows{{"NAME", "STATE", "PORTS", "AGE", "IMAGE", "VM", "EVIDENCE"}};
    for (const auto& app : reply->apps)
    {
        rows.push_back({printable(app.name), printable(app.state), ports_text(app.ports), age(app.created_at, now_ms()), or_dash(app.image),
                        or_dash(app.vm_id.substr(0, 8)), printable(app.evidence) + " (" + age(app.observed_at, now_ms()) + " ago)"});
    }
    session.out(table(rows));
    co_return exit_ok;
}

Task<int> app_info(Session& session)
{
    schema::AppInfo question;
    question.app = session.options().app;
    auto options = session.call_options();
    auto reply = co_await session.bus().call(std::move(question), std::move(options));
    if (!reply) { co_return session.fail(reply.error()); }
    session.out(session.options().json ? document("app", app_json(reply->app)) : info_text(reply->app));
    co_return exit_ok;
}

Task<int> change_app(Session& session)
{
    schema::AppInfo question; // the name behind an id, for the events and for the words
    question.app = session.options().app;
    auto options = session.call_options();
    auto app = co_await session.bus().call(std::move(question), std::move(options));
    if (!app) { co_return session.fail(app.error()); }
    const std::string name = app->app.name;
    const std::string verb = session.options().verb;
    if (session.options().dry_run)
    {
        schema::OperationBegun nothing;
        nothing.vm_id = app->app.vm_id;
        const std::string would = "would have " + std::string{done_word(verb)};
        co_return say_change(session, name, nothing, would, {});
    }
    Error refusal;
    const bool go = confirmed(session, refusal);
    if (!go) { co_return session.fail(refusal); }
    std::optional<OperationWatch> watch;
    if (session.options().wait)
    {
        watch.emplace(session);
        auto ready = co_await watch->catch_up();
        if (!ready) { co_return session.fail(ready.error()); }
    }
    auto begun = co_await send(session);
    if (!begun) { co_return session.fail(begun.error()); }
    if (begun->operation.empty())
    {
        const std::string already = "already " + std::string{done_word(verb)};
        co_return say_change(session, name, *begun, already, {});
    }
    if (!session.options().wait)
    {
        const std::string going = "begun to " + std::string{verb == "rm" ? "remove" : verb};
        co_return say_change(session, name, *begun, going, {});
    }
    const std::uint64_t asked = session.options().timeout_ms;
    const milliseconds limit = asked != 0 ? milliseconds{static_cast<std::int64_t>(asked)} : operation_limit;
    auto outcome = co_await watch->wait(begun->operation, name, app->app.app_id, limit);
    if (!outcome) { co_return session.fail(outcome.error()); }
    if (outcome->succeeded) { co_return say_change(session, name, *begun, done_word(verb), outcome->evidence); }
    const std::string what = verb + " of " + name;
    const std::vector<std::string> no_lines;
    co_return fail_operation(session, what, begun->operation, std::move(*outcome), no_lines);
}

} // namespace dstack::cli
