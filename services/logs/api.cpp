#include "services/logs/api.hpp"
#include <charconv>
#include <nlohmann/json.hpp>

namespace dstack::logs
{

namespace
{
using nlohmann::json;

constexpr std::size_t most_lines = 10'000;

Result<std::uint64_t> number(const http::Request& request, std::string_view name, std::uint64_t otherwise, std::uint64_t low,
                             std::uint64_t high)
{
    const auto text = request.query_value(name);
    if (!text) { return otherwise; }
    std::uint64_t value = 0;
    const auto parsed = std::from_chars(text->data(), text->data() + text->size(), value);
    if (text->empty() || parsed.ec != std::errc{} || parsed.ptr != text->data() + text->size() || value < low || value > high)
    {
        return Error{Errc::invalid_argument,
                     std::string{name} + ": must be a number from " + std::to_string(low) + " to " + std::to_string(high),
                     {},
                     {}};
    }
    return value;
}

Result<bool> flag(const http::Request& request, std::string_view name)
{
    const auto text = request.query_value(name);
    if (!text || *text == "false" || *text == "0") { return false; }
    if (text->empty() || *text == "true" || *text == "1") { return true; }
    return Error{Errc::invalid_argument, std::string{name} + ": must be true or false", {}, {}};
}

schema::LogLine to_schema(const Line& line)
{
    return {line.sequence, line.time_ms == 0 ? std::string{} : rfc3339(line.time_ms), std::string{to_string(line.channel)},
            valid_utf8(line.text)};
}

std::string render(const Page& page, bool as_json)
{
    std::string out;
    for (const Line& line : page.lines)
    {
        if (as_json) { out += schema::to_json(to_schema(line)); }
        else if (line.channel == Channel::gap) { out += "--- " + line.text + " ---"; }
        else { out += line.text; }
        out += '\n';
    }
    return out;
}

http::Response error_response(const Error& error)
{
    const int status = error.code == Errc::not_found ? 404 : error.code == Errc::invalid_argument ? 400 : 500;
    const json body = {{"code", to_string(error.code)}, {"message", error.message}, {"hint", error.hint}};
    return http::json_response(status, body.dump(-1, ' ', false, json::error_handler_t::replace) + "\n");
}

/// Runs on a pool thread: the store's files are not read on the loop.
struct Read
{
    std::shared_ptr<Source> source;
    std::uint64_t from = 0;
    bool tail = false;
    PageLimits limits;
    Result<Page> operator()() const
    {
        const LineStore& store = *source->store;
        if (!tail) { return store.from(from, limits); }
        // The first of the newest lines; the others follow page by page.
        const std::uint64_t next = store.next();
        return store.from(std::max(store.first(), next > limits.lines ? next - limits.lines : 1), limits);
    }
};

Task<Result<Done>> stream(Loop* loop, Read read, bool follow, bool as_json, http::BodyWriter* out)
{
    std::size_t wanted = read.limits.lines;
    while (true)
    {
        auto page = co_await offload(*loop, read);
        if (!page) { co_return std::move(page).error(); }
        const bool some = !page->lines.empty();
        if (some)
        {
            auto writing = out->write(render(*page, as_json));
            auto written = co_await writing;
            if (!written) { co_return std::move(written).error(); }
        }
        if (!follow)
        {
            wanted -= std::min(wanted, page->lines.size());
            if (!some || wanted == 0) { co_return Done{}; }
            read.limits.lines = wanted;
        }
        read.from = page->next;
        read.tail = false;
        if (follow) { read.limits = PageLimits{}; }
        if (some) { continue; }
        const Source& source = *read.source;
        if (source.dropped || (source.finished && read.from >= source.next)) { co_return Done{}; }
        if (read.from >= source.next) { co_await read.source->changed.wait(); }
    }
}
} // namespace

namespace
{
struct Listed
{
    SourceInfo info;
    std::shared_ptr<LineStore> store;
};

/// On a pool thread: a store may be busy writing.
std::string list_text(const std::vector<Listed>& sources)
{
    json out = json::array();
    for (const Listed& one : sources)
    {
        out.push_back({{"kind", one.info.kind == SourceInfo::Kind::vm ? "vm" : "service"},
                       {"id", one.info.id},
                       {"name", one.info.name},
                       {"app_id", one.info.app_id},
                       {"removed", one.info.removed},
                       {"first", one.store->first()},
                       {"next", one.store->next()},
                       {"bytes", one.store->bytes()}});
    }
    const json body = {{"sources", std::move(out)}};
    return body.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
}
} // namespace

Task<http::Response> Api::list() const
{
    std::vector<Listed> sources;
    for (const auto& [name, source] : collector_.sources()) { sources.push_back({source->info, source->store}); }
    auto work = [sources] { return list_text(sources); };
    auto text = co_await offload(loop_, work);
    co_return http::json_response(200, std::move(text));
}

Task<http::Response> Api::answer(http::Request request)
{
    const std::string path{request.path()};
    if (request.method != "GET" && request.method != "HEAD")
    {
        auto response = error_response({Errc::invalid_argument, "only GET is answered here", {}, {}});
        response.status = 405;
        response.headers.add("Allow", "GET, HEAD");
        co_return response;
    }
    if (path == "/logs" || path == "/logs/")
    {
        auto listing = list();
        co_return co_await listing;
    }
    if (path == "/health") { co_return http::json_response(200, "{\"status\":\"ok\"}\n"); }
    if (!path.starts_with("/logs/"))
    {
        co_return error_response({Errc::not_found, "no such path", "try /logs or /logs/SOURCE", {}});
    }
    auto working = lines(std::move(request));
    auto response = co_await working;
    if (!response) { co_return error_response(response.error()); }
    co_return std::move(*response);
}

Task<Result<http::Response>> Api::lines(http::Request request)
{
    const std::string wanted = http::percent_decode(request.path().substr(std::string_view{"/logs/"}.size()));
    constexpr std::uint64_t largest = std::uint64_t{1} << 62U;
    const auto count = number(request, "lines", 200, 1, most_lines);
    const auto from = number(request, "from", 0, 0, largest);
    const auto follow = flag(request, "follow");
    if (!count) { co_return count.error(); }
    if (!from) { co_return from.error(); }
    if (!follow) { co_return follow.error(); }
    const auto format = request.query_value("format").value_or("text");
    if (format != "text" && format != "json")
    {
        co_return Error{Errc::invalid_argument, "format: must be text or json", {}, {}};
    }
    auto source = collector_.find(wanted);
    if (!source) { co_return std::move(source).error(); }
    Read read;
    read.source = *source;
    read.from = *from;
    read.tail = !request.query_value("from").has_value();
    read.limits.lines = *count;
    const bool as_json = format == "json";
    http::Response response;
    response.headers.add("Content-Type", as_json ? "application/x-ndjson" : "text/plain; charset=utf-8");
    response.headers.add("X-Content-Type-Options", "nosniff"); // a guest wrote this
    response.headers.add("Cache-Control", "no-store");
    response.stream = [loop = &loop_, read, going_on = *follow, as_json](http::BodyWriter& out)
    { return stream(loop, read, going_on, as_json, &out); };
    co_return response;
}

Task<Result<schema::LogsQuery::Reply>> Api::query(schema::LogsQuery query)
{
    if (query.lines < 1 || query.lines > most_lines)
    {
        co_return Error{Errc::invalid_argument, "lines: must be in 1..10000", {}, {}};
    }
    auto source = collector_.find(query.source);
    if (!source) { co_return std::move(source).error(); }
    PageLimits limits;
    limits.lines = query.lines;
    auto read = [source = *source, from = query.from, tail = query.tail, limits]
    { return tail ? source->store->tail(limits) : source->store->from(from, limits); };
    auto page = co_await offload(loop_, read);
    if (!page) { co_return std::move(page).error(); }
    schema::LogsQuery::Reply reply;
    const SourceInfo& info = (*source)->info;
    reply.source = info.id;
    for (const Line& line : page->lines) { reply.lines.push_back(to_schema(line)); }
    reply.next = page->next;
    if (!url_.empty())
    {
        const bool vm = info.kind == SourceInfo::Kind::vm;
        reply.follow_url = url_ + "/logs/" + (vm ? "vm:" : "service:") + reply.source +
                           "?follow=true&format=json&from=" + std::to_string(reply.next);
    }
    co_return reply;
}

} // namespace dstack::logs
