#pragma once
#include "bus/client/client.hpp"
#include "shared/http/message.hpp"
#include <string>
#include <string_view>

namespace dstack::logs
{

// Server-sent events, as far as no socket is needed.

/// What GET /events asks for.
struct EventQuery
{
    bus::Filter filter;
    bus::From from;
};
/// `type`, `subject`, `source`, `severity`, `from` (0, now, a cursor, or an RFC 3339 time in UTC). A Last-Event-ID field is
/// where a client was, and counts more than `from`. invalid_argument names the parameter.
Result<EventQuery> parse_event_query(const http::Request& request);

/// The token of "Authorization: Bearer TOKEN" (its scheme in any case) or, for browsers, of ?access_token=.
std::string presented_token(const http::Request& request);
/// In constant time; an empty `expected` admits nobody.
bool token_matches(std::string_view presented, std::string_view expected);

/// One block of the stream. An event's `id` is its cursor; a gap is `event: gap`, the end of the replay `event: caught_up`.
std::string sse_block(const bus::StreamItem& item);
inline constexpr std::string_view sse_greeting = "retry: 1000\n\n";
/// A comment, and how far the stream is: without data that is no event, but where a client goes on when it comes back.
std::string sse_heartbeat(const bus::Cursor& position);

} // namespace dstack::logs
