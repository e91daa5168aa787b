// dstack trace ID
#include "services/dstack/document.hpp"
#include "services/dstack/exit_code.hpp"
#include "services/dstack/text.hpp"
#include "services/dstack/trace_view.hpp"
#include "services/dstack/verbs.hpp"
#include "bus/schema/deploy.hpp"
#include "shared/base/time.hpp"

namespace dstack::cli
{

namespace
{
constexpr std::uint64_t before_ms = 60'000; ///< a command begins before the event that names its operation

struct Found
{
    std::string trace_id;
    std::uint64_t from_ms = 0; ///< 0: not known
    bool untraced = false;     ///< there is such an event, but it carries no trace
};

/// Is this the beginning or the end of an operation of that name, app id or id?
bool names(const bus::EventRecord& event, const std::string& wanted)
{
    if (event.type == schema::DeployStarted::type.name)
    {
        const auto started = schema::from_json<schema::DeployStarted>(event.type, event.data);
        return started && (started->operation == wanted || started->name == wanted || started->app_id == wanted);
    }
    if (event.type != schema::DeployFailed::type.name) { return false; }
    const auto failed = schema::from_json<schema::DeployFailed>(event.type, event.data);
    return failed && (failed->operation == wanted || failed->name == wanted);
}

/// The newest operation of that name, or the one event of that id or cursor.
Task<Result<Found>> find(Session& session, std::string wanted)
{
    Found found;
    bus::From from;
    from.kind = bus::From::Kind::beginning;
    const bus::Filter operations{"deploy.", {}, {}, {}};
    const bus::Filter everything;
    for (int pass = 0; pass < 2; ++pass)
    {
        const bool all = pass == 1;
        bus::Subscription events = session.bus().subscribe(all ? everything : operations, from);
        for (bool more = true; more;)
        {
            auto item = co_await events.next();
            if (!item) { co_return std::move(item).error(); }
            if (std::holds_alternative<bus::CaughtUp>(*item)) { more = false; }
            const auto* event = std::get_if<bus::EventRecord>(&*item);
            if (event == nullptr) { continue; }
            const bool same = all ? event->id == wanted || bus::to_string(event->cursor) == wanted : names(*event, wanted);
            if (!same) { continue; }
            found.trace_id = trace_id_of(event->traceparent);
            found.untraced = found.trace_id.empty();
            const std::uint64_t time = unix_ms_from_rfc3339(event->time).value_or(0);
            found.from_ms = time > before_ms ? time - before_ms : 0;
        }
        if (!found.trace_id.empty() || found.untraced) { co_return found; }
    }
    co_return found;
}

TraceEvent taken(const bus::EventRecord& event)
{
    TraceEvent out;
    out.time_ms = unix_ms_from_rfc3339(event.time).value_or(0);
    out.id = event.id;
    out.cursor = bus::to_string(event.cursor);
    out.type = event.type;
    out.source = event.source.starts_with("/dstack/") ? event.source.substr(8) : event.source;
    out.subject = event.subject;
    out.severity = event.severity;
    out.traceparent = event.traceparent;
    out.data = event.data;
    return out;
}
} // namespace

Task<int> show_trace(Session& session)
{
    const std::string wanted = session.options().app;
    Found found;
    found.trace_id = as_trace_id(wanted);
    if (found.trace_id.empty())
    {
        auto looked = co_await find(session, wanted);
        if (!looked) { co_return session.fail(looked.error()); }
        found = std::move(*looked);
    }
    if (found.untraced)
    {
        const Error error{Errc::not_found, "'" + printable(wanted) + "' carries no trace", "see `dstack events --from 0` for what happened around it", {}};
        co_return session.fail(error);
    }
    const Error unknown{Errc::not_found, "no trace of '" + printable(wanted) + "' in the journal",
                        "an app's name, an operation, an event's id or cursor, or a trace id: 32 hex digits", {}};
    if (found.trace_id.empty()) { co_return session.fail(unknown); }
    bus::From from;
    from.kind = found.from_ms == 0 ? bus::From::Kind::beginning : bus::From::Kind::time;
    from.time_ms = found.from_ms;
    const bus::Filter everything;
    bus::Subscription events = session.bus().subscribe(everything, from);
    TraceCollector collector{found.trace_id};
    std::vector<std::string> warnings;
    for (bool more = true; more;)
    {
        auto item = co_await events.next();
        if (!item) { co_return session.fail(item.error()); }
        if (std::holds_alternative<bus::CaughtUp>(*item)) { more = false; }
        if (const auto* gap = std::get_if<bus::Gap>(&*item))
        {
            if (collector.empty()) { continue; } // that old events are gone is no hole in a trace that begins later
            session.note_gap();
            warnings.push_back("events " + std::to_string(gap->from) + " to " + std::to_string(gap->to) + " are missing: " + gap->reason);
        }
        if (const auto* event = std::get_if<bus::EventRecord>(&*item)) { collector.add(taken(*event)); }
    }
    if (collector.empty()) { co_return session.fail(unknown); }
    if (collector.truncated()) { warnings.push_back("the trace has more events than are shown"); }
    const Trace trace = collector.build();
    session.out(session.options().json ? document("trace", trace_json(trace), warnings) : trace_text(trace));
    if (!session.options().json)
    {
        for (const std::string& warning : warnings) { session.warn(warning); }
    }
    co_return session.incomplete() || collector.truncated() ? exit_incomplete : exit_ok;
}

} // namespace dstack::cli
