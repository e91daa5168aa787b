// A bus peer for the integration tests: what it may do depends on the path it is run from (exe: identity rules).
#include "bus/client/client.hpp"
#include "bus/schema/all.hpp"
#include "shared/log/log.hpp"
#include "shared/process/fd_ready.hpp"
#include "shared/runtime/daemon.hpp"
#include <array>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <fstream>
#include <map>
#include <optional>
#include <unistd.h>
#include <vector>

using namespace dstack;

namespace
{

using Arguments = std::vector<std::string>;

void say(const std::string& line)
{
    std::puts(line.c_str());
    std::fflush(stdout);
}

std::string describe(const Error& error) { return "error " + std::string{to_string(error.code)} + " " + error.message; }

/// call COMMAND JSON [KEY [DEADLINE_MS]]
Task<int> call(bus::Client& client, Arguments args)
{
    bus::CallOptions options;
    if (args.size() > 2) { options.idempotency_key = args[2]; }
    if (args.size() > 3) { options.deadline = milliseconds{std::atoi(args[3].c_str())}; }
    auto reply = co_await client.call_raw(args[0], args[1], options);
    say(reply ? "ok " + *reply : describe(reply.error()));
    co_return reply ? 0 : 1;
}

Task<Result<std::string>> slow_answer(Loop& loop, std::string body, bus::CallContext context, int delay_ms)
{
    say("request " + context.caller + " " + context.idempotency_key + " " + body);
    co_await sleep_for(loop, milliseconds{delay_ms});
    static int count = 0;
    co_return R"({"leases":[],"answer":)" + std::to_string(++count) + "}";
}

/// serve SERVICE COMMAND DELAY_MS: until it is killed
Task<int> serve(Loop& loop, bus::Client& client, Arguments args)
{
    const int delay_ms = std::atoi(args[2].c_str());
    auto handler = [&loop, delay_ms](std::string body, bus::CallContext context)
    { return slow_answer(loop, std::move(body), std::move(context), delay_ms); };
    client.serve_raw(args[1], handler, 8);
    auto connected = co_await client.connect(milliseconds{10'000});
    say(connected ? "ready" : describe(connected.error()));
    if (!connected) { co_return 1; }
    co_await sleep_for(loop, milliseconds{600'000});
    co_return 0;
}

Task<Result<std::string>> fixed_answer(std::string body) { co_return body; }

/// answer SERVICE COMMAND JSON: always the same, until it is killed
Task<int> answer(Loop& loop, bus::Client& client, Arguments args)
{
    const std::string body = args[2];
    client.serve_raw(args[1], [body](std::string, bus::CallContext) { return fixed_answer(body); }, 8);
    auto connected = co_await client.connect(milliseconds{10'000});
    say(connected ? "ready" : describe(connected.error()));
    if (!connected) { co_return 1; }
    for (;;) { co_await sleep_for(loop, milliseconds{60'000}); }
}

/// publish TYPE COUNT FIRST: events "FIRST".. one after the other, ids derived from the number
Task<int> publish(bus::Client& client, Arguments args)
{
    const int count = std::atoi(args[1].c_str());
    const int first = args.size() > 2 ? std::atoi(args[2].c_str()) : 0;
    for (int i = first; i < first + count; ++i)
    {
        bus::Client::OutgoingEvent event;
        event.id = "probe-" + args[0] + "-" + std::to_string(i);
        event.type = args[0];
        event.subject = "s" + std::to_string(i % 3);
        event.severity = "info";
        event.time_ms = 1'700'000'000'000ULL + static_cast<std::uint64_t>(i);
        event.data = R"({"number":)" + std::to_string(i) + "}";
        auto cursor = co_await client.publish_raw(event, milliseconds{15'000});
        say(cursor ? "published " + std::to_string(i) + " " + bus::to_string(*cursor) : describe(cursor.error()));
        if (!cursor) { co_return 1; }
    }
    co_return 0;
}

/// emit ID TYPE SUBJECT JSON: one event with these data
Task<int> emit(bus::Client& client, Arguments args)
{
    bus::Client::OutgoingEvent event;
    event.id = args[0];
    event.type = args[1];
    event.subject = args[2];
    event.severity = "info";
    event.time_ms = 1'700'000'000'000ULL;
    event.data = args[3];
    auto cursor = co_await client.publish_raw(event, milliseconds{15'000});
    say(cursor ? "published " + bus::to_string(*cursor) : describe(cursor.error()));
    co_return cursor ? 0 : 1;
}

/// subscribe FROM TYPE_PREFIX: prints items until it is killed
Task<int> subscribe(bus::Client& client, Arguments args)
{
    bus::From from;
    from.kind = args[0] == "now" ? bus::From::Kind::now : args[0] == "0" ? bus::From::Kind::beginning : bus::From::Kind::cursor;
    if (from.kind == bus::From::Kind::cursor)
    {
        auto cursor = bus::cursor_from_string(args[0]);
        if (!cursor)
        {
            say(describe(cursor.error()));
            co_return 2;
        }
        from.cursor = *cursor;
    }
    bus::Filter filter;
    if (args.size() > 1) { filter.type_prefix = args[1]; }
    bus::Subscription subscription = client.subscribe(filter, from);
    for (;;)
    {
        auto item = co_await subscription.next();
        if (!item)
        {
            say(describe(item.error()));
            co_return 1;
        }
        if (const auto* event = std::get_if<bus::EventRecord>(&*item))
        {
            say("event " + bus::to_string(event->cursor) + " " + event->type + " " + event->source + " " + event->data);
        }
        else if (const auto* gap = std::get_if<bus::Gap>(&*item))
        {
            say("gap " + std::to_string(gap->from) + " " + std::to_string(gap->to) + " " + gap->reason);
        }
        else { say("caught_up"); }
    }
}

std::string padded(int number)
{
    std::string digits = std::to_string(number);
    return std::string(digits.size() < 9 ? 9 - digits.size() : 0, '0') + digits;
}

/// What the workers of one `stream` share.
struct Stream
{
    Loop* loop;
    bus::Client* client;
    std::string type;
    int next;
    int last; ///< 0: without end
    int pause_ms;
    std::string filler;
};

Task<> stream_worker(Stream* stream)
{
    const milliseconds limit{15'000};
    while (stream->last == 0 || stream->next <= stream->last)
    {
        const int number = stream->next++;
        bus::Client::OutgoingEvent event;
        event.id = stream->type + "-" + padded(number);
        event.type = stream->type;
        event.subject = "s" + std::to_string(number % 3);
        event.severity = number % 5 == 0 ? "warning" : "info";
        event.time_ms = 1'700'000'000'000ULL + static_cast<std::uint64_t>(number);
        event.data = R"({"number":)" + std::to_string(number) + R"(,"filler":")" + stream->filler + "\"}";
        for (bool acknowledged = false; !acknowledged;)
        {
            auto cursor = co_await stream->client->publish_raw(event, limit);
            acknowledged = static_cast<bool>(cursor);
            say(acknowledged ? "acked " + std::to_string(number) + " " + bus::to_string(*cursor) : describe(cursor.error()));
        }
        const milliseconds pause{stream->pause_ms};
        if (stream->pause_ms > 0) { co_await sleep_for(*stream->loop, pause); }
    }
}

/// stream TYPE FIRST LAST IN_FLIGHT PAUSE_MS BYTES: events FIRST to LAST (0: for ever), so many at once, each sent again until
/// it is acknowledged; "acked NUMBER CURSOR"
Task<int> stream(Loop& loop, bus::Client& client, Arguments args)
{
    Stream state{&loop,  &client, args[0], std::atoi(args[1].c_str()), std::atoi(args[2].c_str()), std::atoi(args[4].c_str()),
                 std::string(static_cast<std::size_t>(std::atoi(args[5].c_str())), 'x')};
    Scope workers{loop};
    for (int i = 0; i < std::atoi(args[3].c_str()); ++i) { workers.spawn(stream_worker(&state)); }
    co_await workers.drain();
    co_return 0;
}

/// A service whose work is durable: a line in a file for each idempotency key, written once.
struct Ledger
{
    int fd = -1;
    std::map<std::string, int> numbers;
};

Task<Result<std::string>> ledger_answer(Ledger* ledger, bus::CallContext context)
{
    const std::string key = context.caller.substr(0, context.caller.find(":pid=")) + "/" + context.idempotency_key;
    if (!ledger->numbers.contains(key))
    {
        const int number = static_cast<int>(ledger->numbers.size()) + 1;
        const std::string line = key + " " + std::to_string(number) + "\n";
        if (::write(ledger->fd, line.data(), line.size()) != static_cast<ssize_t>(line.size())) { std::abort(); }
        ledger->numbers[key] = number;
    }
    co_return R"({"leases":[],"answer":)" + std::to_string(ledger->numbers[key]) + "}";
}

/// ledger SERVICE COMMAND FILE: until it is killed
Task<int> ledger(Loop& loop, bus::Client& client, Arguments args)
{
    Ledger state;
    std::ifstream before{args[2]};
    std::string key;
    for (int number = 0; before >> key >> number;) { state.numbers[key] = number; }
    state.fd = ::open(args[2].c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    client.serve_raw(args[1], [&state](std::string, bus::CallContext context) { return ledger_answer(&state, std::move(context)); }, 8);
    const milliseconds limit{60'000};
    auto connected = co_await client.connect(limit);
    if (!connected)
    {
        say(describe(connected.error()));
        co_return 1;
    }
    for (;;) { co_await sleep_for(loop, limit); }
}

Task<> call_worker(Stream* stream)
{
    while (stream->last == 0 || stream->next <= stream->last)
    {
        const int number = stream->next++;
        bus::CallOptions options;
        options.idempotency_key = "call-" + padded(number);
        options.deadline = milliseconds{30'000};
        auto reply = co_await stream->client->call_raw(stream->type, "{}", options);
        say(reply ? "answered " + std::to_string(number) + " " + *reply : describe(reply.error()));
        const milliseconds pause{stream->pause_ms};
        co_await sleep_for(*stream->loop, pause);
    }
}

/// calls COMMAND FIRST LAST IN_FLIGHT PAUSE_MS: keyed calls with these numbers; "answered NUMBER BODY"
Task<int> calls(Loop& loop, bus::Client& client, Arguments args)
{
    Stream state{&loop, &client, args[0], std::atoi(args[1].c_str()), std::atoi(args[2].c_str()), std::atoi(args[4].c_str()), {}};
    Scope workers{loop};
    for (int i = 0; i < std::atoi(args[3].c_str()); ++i) { workers.spawn(call_worker(&state)); }
    co_await workers.drain();
    co_return 0;
}

bus::Filter filter_of(const Arguments& args, std::size_t first)
{
    const auto at = [&](std::size_t i) { return i < args.size() ? args[i] : std::string{}; };
    return {at(first), at(first + 1), at(first + 2), at(first + 3)};
}

std::optional<bus::From> from_of(const std::string& text)
{
    if (text == "now") { return bus::From{}; }
    if (text == "0") { return bus::From{bus::From::Kind::beginning, {}, 0}; }
    auto cursor = bus::cursor_from_string(text);
    if (!cursor) { return std::nullopt; }
    return bus::From{bus::From::Kind::cursor, *cursor, 0};
}

/// Says one item of a stream in a line, and gives the sequence that it reaches to.
std::uint64_t say_item(const bus::StreamItem& item)
{
    if (const auto* event = std::get_if<bus::EventRecord>(&item))
    {
        say("event " + bus::to_string(event->cursor) + " " + event->id);
        return event->cursor.sequence;
    }
    if (const auto* gap = std::get_if<bus::Gap>(&item))
    {
        say("gap " + std::to_string(gap->from) + " " + std::to_string(gap->to) + " " + gap->reason);
        return gap->to;
    }
    say("caught_up " + bus::to_string(std::get<bus::CaughtUp>(item).cursor));
    return 0;
}

/// follow FROM TYPE SUBJECT SOURCE SEVERITY PAUSE_EVERY PAUSE_MS: "event CURSOR ID" until it is killed
Task<int> follow(Loop& loop, bus::Client& client, Arguments args)
{
    const auto from = from_of(args[0]);
    if (!from) { co_return 2; }
    const int pause_every = args.size() > 6 ? std::atoi(args[5].c_str()) : 0;
    const milliseconds pause{pause_every > 0 ? std::atoi(args[6].c_str()) : 0};
    bus::Subscription subscription = client.subscribe(filter_of(args, 1), *from);
    for (int count = 1;; ++count)
    {
        auto item = co_await subscription.next();
        if (!item)
        {
            say(describe(item.error()));
            co_return 1;
        }
        say_item(*item);
        if (pause_every > 0 && count % pause_every == 0) { co_await sleep_for(loop, pause); }
    }
}

/// reader FROM TYPE SUBJECT SOURCE SEVERITY: for each sequence on stdin the items up to it, then "done"; it reads no faster
Task<int> reader(Loop& loop, bus::Client& client, Arguments args)
{
    const auto from = from_of(args[0]);
    if (!from) { co_return 2; }
    bus::Subscription subscription = client.subscribe(filter_of(args, 1), *from);
    process::FdReady ready{loop, STDIN_FILENO};
    std::string input;
    say("ready");
    for (;;)
    {
        const auto end = input.find('\n');
        if (end == std::string::npos)
        {
            ready.arm();
            co_await ready.wait();
            std::array<char, 256> buffer{};
            const ssize_t got = ::read(STDIN_FILENO, buffer.data(), buffer.size());
            if (got <= 0) { co_return 0; }
            input.append(buffer.data(), static_cast<std::size_t>(got));
            continue;
        }
        const std::uint64_t until = std::strtoull(input.c_str(), nullptr, 10);
        input.erase(0, end + 1);
        for (std::uint64_t at = 0; at < until;)
        {
            auto item = co_await subscription.next();
            if (!item)
            {
                say(describe(item.error()));
                co_return 1;
            }
            at = say_item(*item);
        }
        say("done");
    }
}

Task<int> run_verb(Loop& loop, bus::Client& client, std::string verb, Arguments args)
{
    if (verb == "serve") { co_return co_await serve(loop, client, std::move(args)); }
    if (verb == "answer") { co_return co_await answer(loop, client, std::move(args)); }
    if (verb == "ledger") { co_return co_await ledger(loop, client, std::move(args)); }
    const bool patient = verb == "stream" || verb == "calls" || verb == "follow" || verb == "reader"; // they outlive brokers
    const milliseconds limit{patient ? 60'000 : 5'000};
    auto connected = co_await client.connect(limit);
    if (!connected)
    {
        say(describe(connected.error()));
        co_return 1;
    }
    if (verb == "call") { co_return co_await call(client, std::move(args)); }
    if (verb == "publish") { co_return co_await publish(client, std::move(args)); }
    if (verb == "emit") { co_return co_await emit(client, std::move(args)); }
    if (verb == "subscribe") { co_return co_await subscribe(client, std::move(args)); }
    if (verb == "stream") { co_return co_await stream(loop, client, std::move(args)); }
    if (verb == "calls") { co_return co_await calls(loop, client, std::move(args)); }
    if (verb == "follow") { co_return co_await follow(loop, client, std::move(args)); }
    if (verb == "reader") { co_return co_await reader(loop, client, std::move(args)); }
    co_return 64;
}

Task<> run(Loop& loop, std::string directory, std::string verb, Arguments args, int* exit_code)
{
    bus::ClientConfig config;
    config.directory = std::move(directory);
    config.service = verb == "serve" || verb == "answer" || verb == "ledger" ? args[0] : std::string{};
    bus::Client client{loop, config};
    auto code = co_await run_verb(loop, client, std::move(verb), std::move(args));
    *exit_code = code;
}

} // namespace

int main(int argc, char** argv)
{
    if (argc < 4)
    {
        std::fputs("usage: bus_probe BUS_DIRECTORY call|serve|answer|publish|emit|subscribe|stream|ledger|calls|follow|reader ARGUMENT...\n", stderr);
        return 64;
    }
    log::init("bus_probe", log::Level::warn);
    int exit_code = 0;
    Loop loop;
    loop.run(run(loop, argv[1], argv[2], Arguments(argv + 3, argv + argc), &exit_code));
    return exit_code;
}
