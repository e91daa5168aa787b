#include "services/logs/event_stream.hpp"
#include "shared/base/time.hpp"
#include "shared/crypto/bytes.hpp"
#include <nlohmann/json.hpp>

namespace dstack::logs
{

namespace
{
constexpr std::size_t longest_parameter = 256;

Error refused(std::string_view name, std::string_view why)
{
    return Error{Errc::invalid_argument, std::string{name} + ": " + std::string{why}, {}, {}};
}

/// A whole second may leave its fraction out.
std::optional<std::uint64_t> time_of(std::string_view text)
{
    if (text.size() == 20 && text.ends_with('Z')) { return unix_ms_from_rfc3339(std::string{text.substr(0, 19)} + ".000Z"); }
    return unix_ms_from_rfc3339(text);
}

Result<bus::From> from_of(std::string_view text)
{
    using Kind = bus::From::Kind;
    bus::From from;
    if (text.empty() || text == "now") { return from; }
    if (text == "0")
    {
        from.kind = Kind::beginning;
        return from;
    }
    if (const auto time = time_of(text))
    {
        from.kind = Kind::time;
        from.time_ms = *time;
        return from;
    }
    auto cursor = bus::cursor_from_string(text);
    if (!cursor) { return refused("from", "must be 0, now, a cursor EPOCH:SEQUENCE, or a time such as 2026-01-31T10:20:30Z"); }
    from.kind = Kind::cursor;
    from.cursor = *cursor;
    return from;
}

/// A field of one line each; what has line ends becomes several.
void add_data(std::string& out, std::string_view text)
{
    while (true)
    {
        const auto end = text.find_first_of("\r\n");
        out += "data: ";
        out += text.substr(0, end);
        out += '\n';
        if (end == std::string_view::npos) { return; }
        text.remove_prefix(end + 1);
    }
}
} // namespace

Result<EventQuery> parse_event_query(const http::Request& request)
{
    EventQuery out;
    for (const auto& [name, into] : {std::pair<std::string_view, std::string*>{"type", &out.filter.type_prefix},
                                     {"subject", &out.filter.subject},
                                     {"source", &out.filter.source},
                                     {"severity", &out.filter.min_severity}})
    {
        *into = request.query_value(name).value_or("");
        if (into->size() > longest_parameter) { return refused(name, "is too long"); }
    }
    if (out.filter.source.starts_with("/dstack/")) { out.filter.source.erase(0, 8); }
    const std::string& severity = out.filter.min_severity;
    if (!severity.empty() && severity != "debug" && severity != "info" && severity != "warning" && severity != "error")
    {
        return refused("severity", "must be debug, info, warning or error");
    }
    const std::string_view last = request.headers.get("Last-Event-ID");
    if (!last.empty())
    {
        auto cursor = bus::cursor_from_string(last);
        if (!cursor) { return refused("Last-Event-ID", "is no cursor EPOCH:SEQUENCE"); }
        out.from.kind = bus::From::Kind::cursor;
        out.from.cursor = *cursor;
        return out;
    }
    auto from = from_of(request.query_value("from").value_or(""));
    if (!from) { return std::move(from).error(); }
    out.from = *from;
    return out;
}

std::string presented_token(const http::Request& request)
{
    const std::string_view field = request.headers.get("Authorization");
    if (field.empty()) { return request.query_value("access_token").value_or(""); }
    const auto space = field.find(' ');
    if (space == std::string_view::npos || !http::iequals(field.substr(0, space), "Bearer")) { return {}; }
    std::string_view token = field.substr(space + 1);
    while (token.starts_with(' ')) { token.remove_prefix(1); }
    while (token.ends_with(' ')) { token.remove_suffix(1); }
    return std::string{token};
}

bool token_matches(std::string_view presented, std::string_view expected)
{
    return !expected.empty() && crypto::constant_time_equal(crypto::view(presented), crypto::view(expected));
}

std::string sse_heartbeat(const bus::Cursor& position)
{
    return ": still here\n" + (position.epoch == 0 ? std::string{} : "id: " + bus::to_string(position) + "\n") + "\n";
}

std::string sse_block(const bus::StreamItem& item)
{
    std::string out;
    if (const auto* event = std::get_if<bus::EventRecord>(&item))
    {
        out = "id: " + bus::to_string(event->cursor) + "\n";
        add_data(out, event->envelope);
    }
    else if (const auto* gap = std::get_if<bus::Gap>(&item))
    {
        const nlohmann::ordered_json data{{"schema", "dstack.gap/v1"}, {"from", gap->from}, {"to", gap->to}, {"reason", gap->reason}};
        out = "event: gap\n";
        add_data(out, data.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
    }
    else
    {
        const std::string cursor = bus::to_string(std::get<bus::CaughtUp>(item).cursor);
        out = "event: caught_up\nid: " + cursor + "\ndata: {\"cursor\":\"" + cursor + "\"}\n";
    }
    return out + "\n";
}

} // namespace dstack::logs
