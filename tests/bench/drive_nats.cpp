// Drives a nats-server with its own C client.
#include "tests/bench/measure.hpp"
#include <condition_variable>
#include <ctime>
#include <memory>
#include <mutex>
#include <nats/nats.h>
#include <utility>

using namespace dstack::bench;

namespace
{

void check(natsStatus status, const char* what)
{
    if (status != NATS_OK) { die(std::string{what} + ": " + natsStatus_GetText(status)); }
}

struct Connection
{
    natsConnection* raw = nullptr;
    jsCtx* js = nullptr;
    explicit Connection(const Arguments& args, std::size_t window = 256)
    {
        natsOptions* choices = nullptr;
        check(natsOptions_Create(&choices), "options");
        check(natsOptions_SetURL(choices, args.text("url").c_str()), "url");
        check(natsOptions_SetSendAsap(choices, args.text("asap") == "yes"), "send at once");
        check(natsConnection_Connect(&raw, choices), "connect");
        natsOptions_Destroy(choices);
        jsOptions options;
        check(jsOptions_Init(&options), "options");
        options.PublishAsync.MaxPending = static_cast<std::int64_t>(window);
        options.PublishAsync.StallWait = 20'000;
        check(natsConnection_JetStream(&js, raw, &options), "JetStream");
    }
    ~Connection()
    {
        jsCtx_Destroy(js);
        natsConnection_Destroy(raw);
    }
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;
};

void make_stream(jsCtx* js)
{
    jsStreamConfig config;
    check(jsStreamConfig_Init(&config), "stream");
    const char* subjects[] = {"events.>"};
    config.Name = "EVENTS";
    config.Subjects = subjects;
    config.SubjectsLen = 1;
    config.Storage = js_FileStorage;
    jsErrCode code = static_cast<jsErrCode>(0);
    jsStreamInfo* info = nullptr;
    const natsStatus status = js_AddStream(&info, js, &config, nullptr, &code);
    jsStreamInfo_Destroy(info);
    check(status, "add stream");
}

/// publish: JetStream on file, --count messages with --window in flight (1: the synchronous call), after --warmup.
void publish(const Arguments& args)
{
    const std::size_t window = args.number("window", 256);
    const std::size_t count = args.number("count", 100'000);
    Payload payload{args.number("size", 512)};
    Connection nats{args, window};
    if (args.text("stream", "new") == "new") { make_stream(nats.js); }
    std::vector<std::int64_t> latencies;
    const auto run = [&](std::size_t messages)
    {
        for (std::size_t i = 0; i < messages; ++i)
        {
            const std::int64_t began = now_ns();
            const std::string& data = payload.make(i, began);
            if (window == 1)
            {
                check(js_Publish(nullptr, nats.js, "events.lease", data.data(), static_cast<int>(data.size()), nullptr, nullptr), "publish");
                latencies.push_back(now_ns() - began);
            }
            else { check(js_PublishAsync(nats.js, "events.lease", data.data(), static_cast<int>(data.size()), nullptr), "publish"); }
        }
        if (window > 1) { check(js_PublishAsyncComplete(nats.js, nullptr), "acknowledgements"); }
    };
    run(args.number("warmup", 0));
    latencies.clear();
    const std::int64_t began = now_ns();
    run(count);
    Report report;
    report.add("count", static_cast<double>(count));
    report.add("per_second", static_cast<double>(count) / (static_cast<double>(now_ns() - began) * 1e-9));
    if (window == 1) { report.add_latency(latencies); }
    report.print();
}

/// publish_core: --count messages at --rate a second, to whoever listens now.
void publish_core(const Arguments& args)
{
    Connection nats{args};
    Payload payload{args.number("size", 512)};
    std::uint64_t number = 0;
    const auto send_due = [&](std::size_t due)
    {
        for (std::size_t i = 0; i < due; ++i)
        {
            const std::string& data = payload.make(number++, now_ns());
            check(natsConnection_Publish(nats.raw, "live.lease", data.data(), static_cast<int>(data.size())), "publish");
        }
    };
    const auto idle = [](std::int64_t ns)
    {
        const timespec pause{static_cast<time_t>(ns / 1'000'000'000), static_cast<long>(ns % 1'000'000'000)};
        ::nanosleep(&pause, nullptr);
    };
    pace(args.number("count"), args.number("rate"), send_due, idle);
    check(natsConnection_Flush(nats.raw), "flush");
    Report{}.print();
}

std::mutex mutex;
std::condition_variable changed;
std::size_t pending = 0; ///< subscribers that are not done, or messages that are awaited

void on_live(natsConnection*, natsSubscription*, natsMsg* message, void* closure)
{
    auto* watcher = static_cast<Watcher*>(closure);
    const bool before = watcher->done();
    watcher->see({natsMsg_GetData(message), static_cast<std::size_t>(natsMsg_GetDataLength(message))});
    natsMsg_Destroy(message);
    if (before || !watcher->done()) { return; }
    const std::lock_guard lock{mutex};
    if (--pending == 0) { changed.notify_one(); }
}

/// subscribe: --subscribers connections see the messages numbered --warmup to --warmup + --count.
void subscribe(const Arguments& args)
{
    const std::uint64_t first = args.number("warmup", 0);
    std::vector<Watcher> watchers(args.number("subscribers", 1), Watcher{first, first + args.number("count") - 1});
    std::vector<std::unique_ptr<Connection>> connections;
    pending = watchers.size();
    for (Watcher& watcher : watchers)
    {
        connections.push_back(std::make_unique<Connection>(args));
        natsSubscription* subscription = nullptr;
        check(natsConnection_Subscribe(&subscription, connections.back()->raw, "live.>", on_live, &watcher), "subscribe");
        check(natsSubscription_SetPendingLimits(subscription, -1, -1), "limits");
        check(natsConnection_Flush(connections.back()->raw), "flush");
    }
    say_ready();
    {
        std::unique_lock lock{mutex};
        changed.wait_for(lock, std::chrono::seconds{120}, [] { return pending == 0; });
    }
    Report report;
    report_watchers(report, watchers);
    report.print();
}

void on_stored(natsConnection*, natsSubscription*, natsMsg* message, void*)
{
    natsMsg_Destroy(message);
    const std::lock_guard lock{mutex};
    if (pending > 0 && --pending == 0) { changed.notify_one(); }
}

/// replay: an ordered consumer reads --count messages from the beginning, --times, or again and again for --seconds.
void replay(const Arguments& args)
{
    const std::size_t count = args.number("count", 200'000);
    Connection nats{args};
    std::vector<double> rates;
    const std::int64_t until = now_ns() + static_cast<std::int64_t>(args.number("seconds")) * 1'000'000'000;
    if (args.number("seconds") > 0) { say_ready(); }
    for (std::size_t turn = 0; args.number("seconds") > 0 ? now_ns() < until : turn < args.number("times", 1); ++turn)
    {
        pending = count;
        jsSubOptions options;
        check(jsSubOptions_Init(&options), "options");
        options.Ordered = true;
        natsSubscription* subscription = nullptr;
        const std::int64_t began = now_ns();
        check(js_Subscribe(&subscription, nats.js, "events.>", on_stored, nullptr, nullptr, &options, nullptr), "subscribe");
        check(natsSubscription_SetPendingLimits(subscription, -1, -1), "limits");
        {
            std::unique_lock lock{mutex};
            if (!changed.wait_for(lock, std::chrono::seconds{60}, [] { return pending == 0; })) { die("the stream ended early"); }
        }
        rates.push_back(static_cast<double>(count) / (static_cast<double>(now_ns() - began) * 1e-9));
        check(natsSubscription_Unsubscribe(subscription), "unsubscribe");
        natsSubscription_Destroy(subscription);
    }
    std::sort(rates.begin(), rates.end());
    Report report;
    report.add("times", static_cast<double>(rates.size()));
    report.add("per_second", rates[rates.size() / 2]);
    report.print();
}

} // namespace

int main(int argc, char** argv)
{
    const std::string_view verb = argc > 1 ? argv[1] : "";
    const Arguments args{argc, argv};
    for (const auto& [name, run] : std::initializer_list<std::pair<std::string_view, void (*)(const Arguments&)>>{
             {"publish", publish}, {"publish_core", publish_core}, {"subscribe", subscribe}, {"replay", replay}})
    {
        if (verb == name)
        {
            run(args);
            return 0;
        }
    }
    die("usage: drive_nats publish|publish_core|subscribe|replay --url nats://127.0.0.1:PORT [--OPTION VALUE]...");
}
