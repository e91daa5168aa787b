#include "services/dstack/follow.hpp"
#include "bus/schema/auth.hpp"
#include "bus/schema/deploy.hpp"
#include "bus/schema/logs.hpp"
#include "bus/schema/vm.hpp"
#include "services/dstack/document.hpp"
#include "services/dstack/exit_code.hpp"
#include "services/dstack/interrupt.hpp"
#include "services/dstack/text.hpp"
#include <array>
#include <cstdio>

namespace dstack::cli
{

namespace
{
constexpr std::uint32_t lines_on_failure = 20;
constexpr milliseconds silence{5'000}; ///< after this long without an event the deployer is asked
}

OperationWatch::OperationWatch(Session& session) : session_(session), events_(session.bus().subscribe(bus::Filter{}, bus::From{})) {}

Task<Result<Done>> OperationWatch::catch_up()
{
    for (;;)
    {
        const milliseconds limit{5'000};
        auto next = events_.next();
        auto item = co_await with_timeout(session_.loop(), limit, "the event stream", std::move(next));
        if (!item) { co_return std::move(item).error(); }
        if (std::holds_alternative<bus::CaughtUp>(*item)) { co_return Done{}; }
    }
}

void OperationWatch::phase(std::string_view what, std::string_view detail) const
{
    const auto passed = std::chrono::duration_cast<milliseconds>(std::chrono::steady_clock::now() - begun_).count();
    std::array<char, 32> clock{};
    std::snprintf(clock.data(), clock.size(), "[%6.2fs] ", static_cast<double>(passed) / 1000.0);
    session_.note(std::string{clock.data()} + std::string{what} + (detail.empty() ? "" : ": ") + std::string{detail});
}

bool OperationWatch::take_operation_event(const bus::EventRecord& event, Outcome& out)
{
    if (event.type == schema::DeployStep::type.name)
    {
        auto step = schema::from_json<schema::DeployStep>(event.type, event.data);
        if (!step || step->operation != operation_) { return false; }
        phase(step->state == "done" ? step->step : step->state + " " + step->step, step->detail);
        return false;
    }
    if (event.type == schema::DeploySucceeded::type.name)
    {
        auto end = schema::from_json<schema::DeploySucceeded>(event.type, event.data);
        if (!end || end->operation != operation_) { return false; }
        out.succeeded = true;
        out.evidence = end->evidence;
        return true;
    }
    if (event.type == schema::DeployFailed::type.name)
    {
        auto end = schema::from_json<schema::DeployFailed>(event.type, event.data);
        if (!end || end->operation != operation_) { return false; }
        out.error = Error{errc_from_string(end->code), end->reason, end->hint, {}};
        out.step = end->step;
        out.denied = end->denied;
        return true;
    }
    return false;
}

void OperationWatch::take_vm_event(const bus::EventRecord& event)
{
    if (event.type == schema::VmBootProgress::type.name)
    {
        auto progress = schema::from_json<schema::VmBootProgress>(event.type, event.data);
        if (progress && progress->name == app_) { phase("guest", progress->phase); }
    }
    else if (event.type == schema::VmBootError::type.name)
    {
        auto failed = schema::from_json<schema::VmBootError>(event.type, event.data);
        if (failed && failed->name == app_) { phase("guest failed", failed->reason); }
    }
    else if (event.type == schema::VmStarted::type.name)
    {
        auto started = schema::from_json<schema::VmStarted>(event.type, event.data);
        if (started && started->name == app_) { phase("qemu", "pid " + std::to_string(started->pid) + ", " + started->accel); }
    }
    else if (event.type == schema::VmExited::type.name)
    {
        auto exited = schema::from_json<schema::VmExited>(event.type, event.data);
        if (exited && exited->name == app_) { phase("qemu exited", exited->reason); }
    }
    else if (event.type == schema::AuthDecided::type.name)
    {
        auto decided = schema::from_json<schema::AuthDecided>(event.type, event.data);
        if (!decided || decided->decision.app_id != app_id_) { return; }
        const schema::Decision& decision = decided->decision;
        phase("keys", decision.allowed ? std::string{"allowed"} : "denied by rule " + decision.rule + ": " + decision.reason);
    }
}

bool OperationWatch::take(const bus::EventRecord& event, Outcome& out)
{
    if (event.type.starts_with("deploy.")) { return take_operation_event(event, out); }
    take_vm_event(event);
    return false;
}

Task<bool> OperationWatch::ask(Outcome& out)
{
    schema::DeployStatus question;
    question.operation = operation_;
    bus::CallOptions options;
    options.deadline = milliseconds{5'000};
    auto status = co_await session_.bus().call(std::move(question), std::move(options));
    if (!status || (status->state != "failed" && status->state != "succeeded")) { co_return false; }
    out.succeeded = status->state == "succeeded";
    out.step = status->step;
    out.denied = status->denied;
    if (!out.succeeded) { out.error = Error{errc_from_string(status->code), status->reason, status->hint, {}}; }
    if (!status->apps.empty()) { out.evidence = status->apps.front().evidence; }
    co_return true;
}

Task<Result<Outcome>> OperationWatch::wait(std::string operation, std::string app, std::string app_id, milliseconds limit)
{
    operation_ = std::move(operation);
    app_ = std::move(app);
    app_id_ = std::move(app_id);
    if (!session_.options().quiet)
    {
        std::string words = "interrupted: the operation goes on without this client; `dstack info " + printable(app_) + "` shows it";
        if (session_.options().verb == "deploy") { words += ", `dstack rm " + printable(app_) + "` ends it"; }
        say_when_interrupted(words);
    }
    const auto until = std::chrono::steady_clock::now() + limit;
    Outcome out;
    for (;;)
    {
        const auto left = std::chrono::duration_cast<milliseconds>(until - std::chrono::steady_clock::now());
        if (left.count() <= 0)
        {
            co_return Error{Errc::deadline_exceeded, "the operation " + operation_ + " has not ended within " + std::to_string(limit.count() / 1000) + " s",
                            "it goes on; its state is unknown here: `dstack info " + app_ + "`", {}};
        }
        auto next = events_.next();
        const milliseconds pause = std::min(left, silence);
        const std::string what = "the event stream";
        auto item = co_await with_timeout(session_.loop(), pause, what, std::move(next));
        if (!item && item.error().code != Errc::deadline_exceeded) { co_return std::move(item).error(); }
        if (!item)
        {
            // An operation whose end cannot be recorded (disk full) says so only when it is asked.
            auto ended = co_await ask(out);
            if (ended) { co_return out; }
            continue;
        }
        const auto* event = std::get_if<bus::EventRecord>(&*item);
        if (event != nullptr && take(*event, out)) { co_return out; }
    }
}

Task<std::vector<std::string>> last_lines(Session& session, std::string app)
{
    schema::LogsQuery query;
    query.source = std::move(app);
    query.lines = lines_on_failure;
    bus::CallOptions options;
    options.deadline = milliseconds{2'000};
    auto reply = co_await session.bus().call(std::move(query), std::move(options));
    std::vector<std::string> lines;
    if (reply)
    {
        for (const auto& line : reply->lines) { lines.push_back(line.text); }
    }
    co_return lines;
}

int fail_operation(Session& session, std::string_view what, const std::string& operation, Outcome outcome,
                   const std::vector<std::string>& lines)
{
    const int code = exit_code_of_operation(outcome.error.code, outcome.denied, outcome.step);
    Error error = std::move(outcome.error);
    error.details = failure_details(operation, outcome.step, outcome.denied, lines);
    error.message = std::string{what} + " failed" + (outcome.step.empty() ? "" : " at step " + outcome.step) + ": " + error.message;
    if (!lines.empty() && !session.options().json)
    {
        session.note("the guest's last lines:");
        for (const std::string& line : lines) { session.note("  | " + line); }
    }
    return session.fail(error, code);
}

} // namespace dstack::cli
