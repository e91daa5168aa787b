#include "services/dstack/document.hpp"
#include "services/dstack/exit_code.hpp"
#include "services/dstack/interrupt.hpp"
#include "services/dstack/verbs.hpp"
#include <csignal>
#include <cstdio>
#include <unistd.h>

namespace
{
using namespace dstack;
using namespace dstack::cli;

Task<int> dispatch(Session& session)
{
    const std::string& verb = session.options().verb;
    if (verb == "deploy") { co_return co_await deploy(session); }
    if (verb == "ls") { co_return co_await list_apps(session); }
    if (verb == "info") { co_return co_await app_info(session); }
    if (verb == "leases") { co_return co_await show_leases(session); }
    if (verb == "leases explain") { co_return co_await explain_lease(session); }
    if (verb == "leases release") { co_return co_await release_lease(session); }
    if (verb == "events") { co_return co_await show_events(session); }
    if (verb == "trace") { co_return co_await show_trace(session); }
    if (verb == "bus services") { co_return co_await bus_services(session); }
    if (verb == "bus top") { co_return co_await bus_top(session); }
    if (verb == "allow" || verb == "revoke") { co_return co_await change_policy(session); }
    if (verb == "audit list") { co_return co_await audit_list(session); }
    if (verb == "audit show") { co_return co_await audit_show(session); }
    if (verb == "audit export") { co_return co_await audit_export(session); }
    if (verb == "why") { co_return co_await show_why(session); }
    if (verb == "policy test") { co_return co_await policy_test(session); }
    if (verb == "logs") { co_return co_await show_logs(session); }
    co_return co_await change_app(session);
}

Task<> run(Session& session, int& code)
{
    if (session.options().verb == "audit verify")
    {
        auto verified = co_await audit_verify(session);
        code = verified;
        co_return;
    }
    auto connected = co_await session.connect();
    if (!connected)
    {
        code = session.fail(connected.error());
        co_return;
    }
    auto result = co_await dispatch(session);
    code = result;
}

void print(std::FILE* stream, std::string_view text) { std::fwrite(text.data(), 1, text.size(), stream); }

int leave(const Leave& leave)
{
    print(stdout, leave.out);
    if (leave.error.empty()) { return leave.exit_code; }
    if (leave.json)
    {
        print(stdout, error_document(Error{Errc::invalid_argument, leave.error, leave.hint, {}}));
        return leave.exit_code;
    }
    print(stderr, "error: " + leave.error + "\n");
    if (!leave.hint.empty()) { print(stderr, "hint: " + leave.hint + "\n"); }
    return leave.exit_code;
}

int run_options(Options options)
{
    if (options.verb == "version")
    {
        print(stdout, options.json ? document("version", version_json(DSTACK_VERSION)) : std::string{"dstack " DSTACK_VERSION "\n"});
        return exit_ok;
    }
    if (options.verb == "completion")
    {
        print(stdout, bash_completion());
        return exit_ok;
    }
    int code = exit_generic;
    Loop loop;
    Session session{loop, std::move(options)};
    loop.run(run(session, code));
    // Nothing here outlives the process: leave without waiting for the bus' threads.
    const bool written = std::fflush(stdout) == 0;
    std::fflush(stderr);
    ::_exit(written || code != exit_ok ? code : exit_generic);
}
} // namespace

int main(int argc, char** argv)
{
    std::signal(SIGPIPE, SIG_IGN);
    leave_on_signals();
    auto parsed = parse_options(argc, argv);
    if (const auto* mistake = std::get_if<Leave>(&parsed)) { return leave(*mistake); }
    return run_options(std::move(std::get<Options>(parsed)));
}
