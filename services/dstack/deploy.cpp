#include "bus/schema/deploy.hpp"
#include "services/dstack/document.hpp"
#include "services/dstack/exit_code.hpp"
#include "services/dstack/follow.hpp"
#include "services/dstack/text.hpp"
#include "services/dstack/verbs.hpp"
#include <array>
#include <cerrno>
#include <fcntl.h>
#include <unistd.h>

namespace dstack::cli
{

namespace
{
constexpr std::size_t max_compose_bytes = 256 * 1024;
constexpr std::uint64_t default_ready_ms = 120'000;
constexpr std::uint64_t undo_ms = 120'000; ///< the deployer may take this long to undo what failed

Result<std::string> read_compose(const std::string& path)
{
    const bool standard = path == "-";
    const int fd = standard ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0) { return errno_error("compose file " + path, errno); }
    std::string text;
    std::array<char, 65536> buffer{};
    ssize_t got = 0;
    while (text.size() <= max_compose_bytes && (got = ::read(fd, buffer.data(), buffer.size())) > 0)
    {
        text.append(buffer.data(), static_cast<std::size_t>(got));
    }
    const int why = errno;
    if (!standard) { ::close(fd); }
    if (got < 0) { return errno_error("compose file " + path, why); }
    // The deployer would refuse it as well; this saves the bus from carrying it. One byte more than fits is enough to say so.
    if (text.size() > max_compose_bytes) { text.resize(max_compose_bytes + 1); }
    return text;
}

schema::DeployCreate request_of(const Options& options, std::string compose)
{
    schema::DeployCreate request;
    request.name = options.name;
    request.compose = std::move(compose);
    request.image = options.image;
    request.vcpu = options.vcpu;
    request.memory_mb = options.memory_mb;
    request.disk_gb = options.disk_gb;
    request.ports = options.ports;
    request.allow = options.allow;
    request.kms = options.kms;
    request.dry_run = options.dry_run;
    request.ready_timeout_ms = options.timeout_ms != 0 ? options.timeout_ms : default_ready_ms;
    return request;
}

int say_plan(Session& session, const schema::DeployCreate::Reply& reply)
{
    if (session.options().json) { session.out(document("deploy_plan", plan_json(reply))); }
    else { session.out("compose hash: " + reply.compose_hash + "\napp id:       " + reply.app_id + "\n"); }
    return exit_ok;
}

int say_result(Session& session, const schema::DeployCreate::Reply& reply, const schema::App& app)
{
    if (session.options().json)
    {
        session.out(document("deploy", deploy_json(reply, app)));
        return exit_ok;
    }
    std::string text = "compose hash: " + reply.compose_hash + "\napp id:       " + reply.app_id + "\n";
    text += (reply.already ? "already deployed: vm " : "deployed: vm ") + (app.vm_id.empty() ? "not made yet" : app.vm_id) + "\n";
    for (const auto& port : app.ports)
    {
        text += "  app :" + std::to_string(port.vm_port) + " -> " +
                (port.protocol == "tcp" ? url_of({port}) : port.protocol + " " + port.host_address + ":" + std::to_string(port.host_port)) + "\n";
    }
    if (app.ports.empty()) { session.note("no ports mapped; add --port HOST:VM to reach the app"); }
    session.out(text);
    if (reply.already && (app.state == "stopped" || app.state == "exited")) { session.note("it is " + app.state + "; start it: dstack start " + printable(app.name)); }
    if (!app.evidence.empty()) { session.note("state: " + app.state + " (" + app.evidence + ")"); }
    return exit_ok;
}

Task<int> show_deployed(Session& session, schema::DeployCreate::Reply reply)
{
    schema::AppInfo question;
    question.app = session.options().name;
    auto options = session.call_options();
    auto answer = co_await session.bus().call(std::move(question), std::move(options));
    schema::App app;
    app.name = session.options().name;
    app.app_id = reply.app_id;
    app.compose_hash = reply.compose_hash;
    app.vm_id = reply.vm_id;
    app.ports = reply.ports;
    if (answer) { app = std::move(answer->app); }
    co_return say_result(session, reply, app);
}
} // namespace

Task<int> deploy(Session& session)
{
    auto compose = read_compose(session.options().compose);
    if (!compose) { co_return session.fail(compose.error()); }
    auto request = request_of(session.options(), std::move(*compose));
    const bool wait = session.options().wait && !session.options().dry_run;
    const milliseconds limit{static_cast<std::int64_t>(request.ready_timeout_ms + undo_ms)};
    std::optional<OperationWatch> watch;
    if (wait)
    {
        watch.emplace(session);
        auto ready = co_await watch->catch_up();
        if (!ready) { co_return session.fail(ready.error()); }
    }
    auto options = session.call_options(30'000);
    options.deadline = milliseconds{30'000}; // --timeout is for the app to answer
    auto reply = co_await session.bus().call(std::move(request), std::move(options));
    if (!reply) { co_return session.fail(reply.error()); }
    if (session.options().dry_run) { co_return say_plan(session, *reply); }
    if (!wait || reply->operation.empty()) { co_return co_await show_deployed(session, *reply); }
    auto outcome = co_await watch->wait(reply->operation, session.options().name, reply->app_id, limit);
    if (!outcome) { co_return session.fail(outcome.error()); }
    if (outcome->succeeded) { co_return co_await show_deployed(session, *reply); }
    std::vector<std::string> lines;
    const bool guest = outcome->step == "boot" || outcome->step == "probe";
    if (guest)
    {
        auto last = co_await last_lines(session, session.options().name);
        lines = std::move(last);
    }
    const std::string what = "deploy of " + session.options().name;
    co_return fail_operation(session, what, reply->operation, std::move(*outcome), lines);
}

} // namespace dstack::cli
