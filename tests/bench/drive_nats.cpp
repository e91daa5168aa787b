// Drives a nats-server with its own C client.
#include "tests/bench/measure.hpp"
#include <nats/nats.h>

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
        check(natsConnection_ConnectTo(&raw, args.text("url").c_str()), "connect");
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

} // namespace

int main(int argc, char** argv)
{
    const std::string_view verb = argc > 1 ? argv[1] : "";
    const Arguments args{argc, argv};
    if (verb == "publish") { publish(args); }
    else { die("usage: drive_nats publish --url nats://127.0.0.1:PORT [--OPTION VALUE]..."); }
    nats_Close();
    return 0;
}
