// Drives a dbus-daemon with systemd's client: a service and its caller, both through the daemon.
#include "tests/bench/measure.hpp"
#include <cstring>
#include <systemd/sd-bus.h>
#include <utility>

using namespace dstack::bench;

namespace
{

constexpr const char* name = "org.dstack.bench";
constexpr const char* path = "/org/dstack/bench";

int check(int result, const char* what)
{
    if (result < 0) { die(std::string{what} + ": " + std::strerror(-result)); }
    return result;
}

sd_bus* connect(const Arguments& args)
{
    sd_bus* bus = nullptr;
    check(sd_bus_new(&bus), "new");
    check(sd_bus_set_address(bus, args.text("address").c_str()), "address");
    check(sd_bus_set_bus_client(bus, 1), "client");
    check(sd_bus_start(bus), "connect");
    return bus;
}

int answer(sd_bus_message* request, void* closure, sd_bus_error*)
{
    const char* text = nullptr;
    check(sd_bus_message_read(request, "s", &text), "request");
    return sd_bus_reply_method_return(request, "s", static_cast<Payload*>(closure)->make(0, now_ns()).c_str());
}

/// serve: answers every call with --size bytes, until it is killed.
void serve(const Arguments& args)
{
    sd_bus* bus = connect(args);
    Payload payload{args.number("size", 512)};
    const sd_bus_vtable table[] = {SD_BUS_VTABLE_START(0), SD_BUS_METHOD("List", "s", "s", answer, SD_BUS_VTABLE_UNPRIVILEGED), SD_BUS_VTABLE_END};
    check(sd_bus_add_object_vtable(bus, nullptr, path, name, table, &payload), "object");
    check(sd_bus_request_name(bus, name, 0), "name");
    say_ready();
    for (;;)
    {
        if (check(sd_bus_process(bus, nullptr), "process") == 0) { check(sd_bus_wait(bus, UINT64_MAX), "wait"); }
    }
}

struct Call
{
    std::vector<std::int64_t>* latencies;
    std::int64_t born_ns;
};

int on_result(sd_bus_message* result, void* closure, sd_bus_error*)
{
    const auto* call = static_cast<Call*>(closure);
    const char* text = nullptr;
    if (sd_bus_message_is_method_error(result, nullptr) != 0) { die(sd_bus_message_get_error(result)->message); }
    check(sd_bus_message_read(result, "s", &text), "result");
    call->latencies->push_back(now_ns() - call->born_ns);
    return 0;
}

/// call: --count calls with --window in flight, after --warmup.
void call(const Arguments& args)
{
    sd_bus* bus = connect(args);
    Payload payload{args.number("size", 512)};
    const std::size_t window = args.number("window", 32);
    std::vector<std::int64_t> latencies;
    const auto run = [&](std::size_t count)
    {
        std::vector<Call> calls;
        calls.reserve(count);
        latencies.clear();
        while (latencies.size() < count)
        {
            while (calls.size() < count && calls.size() - latencies.size() < window)
            {
                Call& one = calls.emplace_back(Call{&latencies, now_ns()});
                check(sd_bus_call_method_async(bus, nullptr, name, path, name, "List", on_result, &one, "s", payload.make(calls.size(), one.born_ns).c_str()), "call");
            }
            if (check(sd_bus_process(bus, nullptr), "process") == 0) { check(sd_bus_wait(bus, UINT64_MAX), "wait"); }
        }
    };
    run(args.number("warmup", 0));
    const std::int64_t began = now_ns();
    run(args.number("count", 10'000));
    Report report;
    report.add("per_second", static_cast<double>(latencies.size()) / (static_cast<double>(now_ns() - began) * 1e-9));
    report.add_latency(latencies);
    report.print();
}

} // namespace

int main(int argc, char** argv)
{
    const std::string_view verb = argc > 1 ? argv[1] : "";
    const Arguments args{argc, argv};
    if (verb == "serve") { serve(args); }
    else if (verb == "call") { call(args); }
    else { die("usage: drive_dbus serve|call --address unix:path=PATH [--OPTION VALUE]..."); }
    return 0;
}
