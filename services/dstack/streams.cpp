#include "bus/schema/logs.hpp"
#include "services/dstack/document.hpp"
#include "services/dstack/exit_code.hpp"
#include "services/dstack/text.hpp"
#include "services/dstack/verbs.hpp"
#include <chrono>
#include <cstdio>

namespace dstack::cli
{

namespace
{
constexpr milliseconds follow_pause{200}; ///< between looks for new log lines

/// 0, a cursor, a time, or how long ago. Empty: everything, or from now on when following.
Result<bus::From> from_of(const Options& options)
{
    using Kind = bus::From::Kind;
    bus::From from;
    const std::string& text = options.from;
    if (text.empty())
    {
        from.kind = options.follow ? Kind::now : Kind::beginning;
        return from;
    }
    if (text == "0")
    {
        from.kind = Kind::beginning;
        return from;
    }
    auto duration = parse_duration(text);
    if (duration)
    {
        const auto now = std::chrono::system_clock::now().time_since_epoch();
        const auto now_ms = static_cast<std::uint64_t>(std::chrono::duration_cast<milliseconds>(now).count());
        from.kind = Kind::time;
        from.time_ms = now_ms > *duration ? now_ms - *duration : 0;
        return from;
    }
    auto time = parse_time(text);
    if (time)
    {
        from.kind = Kind::time;
        from.time_ms = *time;
        return from;
    }
    auto cursor = bus::cursor_from_string(text);
    if (!cursor)
    {
        return Error{Errc::invalid_argument, "--from '" + printable(text) + "': no cursor, time or duration",
                     "0, EPOCH:SEQUENCE, 2026-01-31T10:20:30Z or 10m", {}};
    }
    from.kind = Kind::cursor;
    from.cursor = *cursor;
    return from;
}

std::string event_text(const bus::EventRecord& event, bool with_cursor)
{
    std::string line = with_cursor ? bus::to_string(event.cursor) + " " : std::string{};
    line += printable(event.time);
    const std::string severity = event.severity == "info" || event.severity.empty() ? "" : " " + printable(event.severity) + ":";
    line += severity + " " + printable(event.type) + " " + (event.subject.empty() ? "-" : printable(event.subject));
    const std::string fields = fields_of(event.data, event.subject);
    if (!fields.empty()) { line += " " + fields; }
    return line + "\n";
}

bool is_gap(std::string_view channel) { return channel == "gap"; }

/// Prints lines; a gap among them is noted.
void print_lines(Session& session, const schema::LogsQuery::Reply& reply)
{
    const Options& options = session.options();
    for (const auto& line : reply.lines)
    {
        if (is_gap(line.channel)) { session.note_gap(); }
        if (options.json) { session.out(log_line_json(reply.source, line.time, line.channel, line.sequence, line.text)); }
        else if (is_gap(line.channel)) { session.warn("lines are missing: " + line.text); }
        else { session.out((options.raw ? line.text : printable(line.text)) + "\n"); }
    }
    session.out({}, true);
}
} // namespace

Task<int> show_events(Session& session)
{
    const Options& options = session.options();
    auto from = from_of(options);
    if (!from) { co_return session.fail(from.error()); }
    const bus::Filter filter{options.type, options.subject, options.source, options.severity};
    bus::Subscription events = session.bus().subscribe(filter, *from);
    if (options.follow) { session.watch_reader(); }
    for (;;)
    {
        auto item = co_await events.next();
        if (!item) { co_return session.fail(item.error()); }
        if (const auto* event = std::get_if<bus::EventRecord>(&*item))
        {
            session.out(options.json ? event->envelope + "\n" : event_text(*event, options.verbose), options.follow);
        }
        else if (const auto* gap = std::get_if<bus::Gap>(&*item))
        {
            session.note_gap();
            if (options.json) { session.out(gap_json(gap->from, gap->to, gap->reason), true); }
            else { session.warn("events " + std::to_string(gap->from) + " to " + std::to_string(gap->to) + " are missing: " + gap->reason); }
        }
        else if (!options.follow) { co_return session.incomplete() ? exit_incomplete : exit_ok; }
        else { session.out({}, true); }
    }
}

Task<int> show_logs(Session& session)
{
    const Options& options = session.options();
    schema::LogsQuery query;
    query.source = options.app;
    query.lines = options.lines;
    if (options.follow) { session.watch_reader(); }
    for (;;)
    {
        auto call = session.call_options();
        auto asked = query;
        auto reply = co_await session.bus().call(std::move(asked), std::move(call));
        if (!reply) { co_return session.fail(reply.error()); }
        print_lines(session, *reply);
        if (!options.follow) { co_return session.incomplete() ? exit_incomplete : exit_ok; }
        const bool more = !reply->lines.empty() && !query.tail; // a full page: there may be another one
        query.tail = false;
        query.from = reply->next;
        query.lines = 1000;
        if (!more) { co_await sleep_for(session.loop(), follow_pause); }
    }
}

} // namespace dstack::cli
