#include "services/auth/policy_check.hpp"
#include "services/auth/service.hpp"
#include "services/auth/standalone.hpp"
#include "shared/base/time.hpp"
#include "shared/state/files.hpp"
#include <cstdio>
#include <malloc.h>
#include <sysexits.h>

namespace
{

constexpr std::size_t max_policy_bytes = 64 * 1024 * 1024;

/// 0: a policy without a place that upstream read as "any"; 1: there are such; EX_DATAERR: it is no policy.
int check(const dstack::auth::Plan& plan)
{
    const auto text = dstack::state::read_file(plan.policy_file, max_policy_bytes);
    if (!text)
    {
        std::fprintf(stderr, "dstack-auth: %s\n", text.error().message.c_str());
        return EX_NOINPUT;
    }
    const auto report = dstack::auth::check_policy(*text, dstack::unix_ms());
    const std::string shown = plan.json ? report_json(report) + "\n" : report_text(report, plan.policy_file);
    std::fputs(shown.c_str(), stdout);
    if (!report.error.empty()) { return EX_DATAERR; }
    for (const auto& finding : report.findings)
    {
        if (finding.denies) { return 1; }
    }
    return EX_OK;
}

} // namespace

int main(int argc, char** argv)
{
    using dstack::auth::Plan;
    // A policy of many apps is read into one block, and freed: such blocks go back to the system at once. What the ledger
    // writes at a time does not come and go with each batch.
    ::mallopt(M_MMAP_THRESHOLD, 1024 * 1024);
    ::mallopt(M_TRIM_THRESHOLD, 1024 * 1024);
    ::mallopt(M_TOP_PAD, 256 * 1024);
    ::mallopt(M_ARENA_MAX, 2);
    const Plan plan = dstack::auth::plan_of({argv + 1, argv + argc});
    switch (plan.kind)
    {
    case Plan::Kind::check_policy:
        return check(plan);
    case Plan::Kind::wrong:
        std::fprintf(stderr, "dstack-auth: %s\n", plan.error.c_str());
        return EX_USAGE;
    case Plan::Kind::standalone:
        return dstack::run_service("dstack-auth", plan.debug, [&plan](dstack::Daemon& daemon)
                                   { return dstack::auth::serve(daemon, plan.config); });
    case Plan::Kind::daemon:
        break;
    }
    return dstack::run_daemon<dstack::auth::Config>(
        argc, argv,
        {"dstack-auth", "answers the KMS: may this boot get keys?", "/etc/dstack/auth.toml",
         "       dstack-auth --standalone --policy FILE --listen ADDRESS:PORT [--ledger DIR] [--debug]\n"
         "       dstack-auth --check-policy FILE [--json]\n"},
        dstack::auth::parse_config, dstack::auth::serve);
}
