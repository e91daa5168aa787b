// Drives a dstack-bus over its sockets, as bus/README.md specifies them and without the project's own client.
// Which service it is depends on the path it is run from (exe: identity rules).
#include "tests/bench/measure.hpp"
#include <charconv>
#include <ctime>
#include <fcntl.h>
#include <optional>
#include <poll.h>
#include <random>
#include <unistd.h>
#include <utility>
#include <zmq.hpp>

using namespace dstack::bench;

namespace
{

constexpr std::size_t most_events_per_message = 128;

using Frames = std::vector<zmq::message_t>;

std::string_view text(const zmq::message_t& frame) { return {static_cast<const char*>(frame.data()), frame.size()}; }

/// One frame of these fields.
std::string line(const std::vector<std::string_view>& fields)
{
    std::string out;
    for (const std::string_view field : fields) { out.append(out.empty() ? "" : "\n").append(field); }
    return out;
}

void send(zmq::socket_t& socket, const std::vector<std::string_view>& fields) { socket.send(zmq::buffer(line(fields)), zmq::send_flags::none); }

/// The fields of a frame; the last of at most `most` is all the rest.
std::vector<std::string_view> fields_of(std::string_view frame, std::size_t most)
{
    std::vector<std::string_view> out;
    while (out.size() + 1 < most && frame.find('\n') != std::string_view::npos)
    {
        out.push_back(frame.substr(0, frame.find('\n')));
        frame.remove_prefix(out.back().size() + 1);
    }
    out.push_back(frame);
    return out;
}

bool receive(zmq::socket_t& socket, Frames& out, bool wait)
{
    out.clear();
    for (bool more = true; more;)
    {
        zmq::message_t part;
        const auto flags = wait || !out.empty() ? zmq::recv_flags::none : zmq::recv_flags::dontwait;
        if (!socket.recv(part, flags))
        {
            if (wait) { die("the broker said nothing for 20 s"); }
            return false;
        }
        more = part.more();
        out.push_back(std::move(part));
    }
    return true;
}

/// Waits for the next message and gives its fields, at most `most`; another verb ends the run.
std::vector<std::string_view> expect(zmq::socket_t& socket, Frames& frames, std::string_view verb, std::size_t most)
{
    receive(socket, frames, true);
    std::vector<std::string_view> fields = fields_of(text(frames[0]), most);
    if (fields.size() < 2 || fields[1] != verb) { die("expected " + std::string{verb} + ", got " + std::string{text(frames[0]).substr(0, 200)}); }
    return fields;
}

void wait_readable(zmq::socket_t& socket, std::int64_t ns)
{
    if ((socket.get(zmq::sockopt::events) & ZMQ_POLLIN) != 0) { return; }
    pollfd descriptor{socket.get(zmq::sockopt::fd), POLLIN, 0};
    const timespec limit{static_cast<time_t>(ns / 1'000'000'000), static_cast<long>(ns % 1'000'000'000)};
    ::ppoll(&descriptor, 1, &limit, nullptr);
}

zmq::socket_t connect(zmq::context_t& context, const std::string& directory, const std::string& service)
{
    zmq::socket_t socket{context, zmq::socket_type::dealer};
    socket.set(zmq::sockopt::linger, 1000);
    socket.set(zmq::sockopt::rcvtimeo, 20'000);
    socket.set(zmq::sockopt::sndhwm, 100'000);
    socket.set(zmq::sockopt::rcvhwm, 100'000);
    socket.connect("ipc://" + directory + "/commands.sock");
    send(socket, {"1", "hello", service, "1"});
    Frames frames;
    expect(socket, frames, "welcome", 6);
    return socket;
}

/// UUIDv7: time-ordered; its last eight hex digits are the number of the event in this run.
class Ids
{
  public:
    std::string next(std::uint64_t count)
    {
        const std::uint64_t ms = unix_now_ms();
        char out[37];
        std::snprintf(out, sizeof out, "%08x-%04x-7%03x-%04x-%04x%08x", static_cast<unsigned>(ms >> 16), static_cast<unsigned>(ms & 0xffff),
                      static_cast<unsigned>((count >> 20) & 0xfff), 0x8000U | (run_ & 0x3fffU), run_ >> 16, static_cast<unsigned>(count));
        return out;
    }
    static std::uint64_t count_of(std::string_view id)
    {
        std::uint64_t value = 0;
        const auto digits = id.substr(id.size() < 8 ? 0 : id.size() - 8);
        std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
        return value;
    }

  private:
    unsigned run_ = std::random_device{}();
};

class Publisher
{
  public:
    Publisher(zmq::socket_t& socket, std::string type, std::size_t size) : socket_(socket), type_(std::move(type)), payload_(size) {}

    std::uint64_t sent() const { return born_.size(); }
    std::uint64_t acknowledged() const { return acknowledged_; }
    const std::vector<std::int64_t>& latencies() const { return latencies_; }
    std::uint64_t last_sequence() const { return last_sequence_; }
    void forget_latencies() { latencies_.clear(); }

    /// One message with `count` events.
    void send_events(std::size_t count)
    {
        for (std::size_t i = 0; i < count; ++i)
        {
            const std::uint64_t serial = born_.size();
            const std::int64_t born = now_ns();
            born_.push_back(born);
            const std::string request = line({"1", "publish", ids_.next(serial), type_, "app-" + std::to_string(serial % 100), "info",
                                              std::to_string(unix_now_ms()), "", payload_.make(serial, born)});
            socket_.send(zmq::buffer(request), i + 1 < count ? zmq::send_flags::sndmore : zmq::send_flags::none);
        }
    }

    /// Takes one message of acknowledgements. False: there was none (`wait` false).
    bool take(bool wait)
    {
        if (!receive(socket_, frames_, wait)) { return false; }
        const std::vector<std::string_view> fields = fields_of(text(frames_[0]), text(frames_[0]).size());
        if (fields.size() < 4 || fields[1] != "published" || fields.size() % 2 != 0)
        {
            die("not an acknowledgement: " + std::string{text(frames_[0]).substr(0, 200)});
        }
        const std::int64_t now = now_ns();
        for (std::size_t i = 2; i < fields.size(); i += 2)
        {
            const std::uint64_t serial = Ids::count_of(fields[i]);
            if (serial >= born_.size()) { die("an acknowledgement of an event that was not sent"); }
            latencies_.push_back(now - born_[serial]);
            ++acknowledged_;
        }
        const std::string_view cursor = fields.back(); // EPOCH:SEQUENCE
        std::from_chars(cursor.data() + cursor.find(':') + 1, cursor.data() + cursor.size(), last_sequence_);
        return true;
    }

    /// `count` more events with at most `window` in flight; a message carries what the window has room for when an
    /// acknowledgement came, at most `gather`.
    void run(std::size_t count, std::size_t window, std::size_t gather)
    {
        const std::uint64_t until = born_.size() + count;
        born_.reserve(until);
        latencies_.reserve(latencies_.size() + count);
        while (acknowledged_ < until)
        {
            while (sent() < until && sent() - acknowledged_ < window)
            {
                send_events(std::min({static_cast<std::size_t>(until - sent()), window - static_cast<std::size_t>(sent() - acknowledged_), gather}));
            }
            take(true);
        }
    }

    /// `rate` events a second for `count` events.
    void run_at(std::size_t count, std::size_t rate, std::size_t gather)
    {
        const auto send_due = [&](std::size_t due)
        {
            for (std::size_t left = due; left > 0;)
            {
                const std::size_t some = std::min(left, gather);
                send_events(some);
                left -= some;
            }
            while (take(false)) {}
        };
        const auto idle = [&](std::int64_t ns)
        {
            wait_readable(socket_, ns);
            while (take(false)) {}
        };
        pace(count, rate, send_due, idle);
        while (acknowledged_ < sent()) { take(true); }
    }

  private:
    zmq::socket_t& socket_;
    std::string type_;
    Payload payload_;
    Ids ids_;
    std::vector<std::int64_t> born_;
    std::vector<std::int64_t> latencies_;
    std::uint64_t acknowledged_ = 0;
    std::uint64_t last_sequence_ = 0;
    Frames frames_;
};

/// publish: --count events with --window in flight (or at --rate a second), after --warmup events.
void publish(const Arguments& args)
{
    zmq::context_t context;
    zmq::socket_t socket = connect(context, args.text("bus"), args.text("service", "allocator"));
    Publisher publisher{socket, args.text("type", "lease.granted"), args.number("size", 512)};
    const std::size_t count = args.number("count", 100'000);
    const std::size_t window = args.number("window", 256);
    const std::size_t gather = args.text("batch", "on") == "off" ? 1 : std::min(args.number("gather", most_events_per_message), most_events_per_message);
    publisher.run(args.number("warmup", 0), window, gather);
    publisher.forget_latencies();
    const std::int64_t began = now_ns();
    if (args.number("rate") > 0) { publisher.run_at(count, args.number("rate"), gather); }
    else { publisher.run(count, window, gather); }
    const double seconds = static_cast<double>(now_ns() - began) * 1e-9;
    Report report;
    report.add("count", static_cast<double>(count));
    report.add("per_second", static_cast<double>(count) / seconds);
    report.add("last_sequence", static_cast<double>(publisher.last_sequence()));
    auto latencies = publisher.latencies();
    report.add_latency(latencies);
    report.print();
}

/// subscribe: --subscribers live subscribers see the events numbered --warmup to --warmup + --count.
void subscribe(const Arguments& args)
{
    const std::size_t subscribers = args.number("subscribers", 1);
    const std::uint64_t first = args.number("warmup", 0);
    zmq::context_t context;
    std::vector<zmq::socket_t> sockets;
    std::vector<zmq::pollitem_t> items;
    std::vector<Watcher> watchers;
    Frames frames;
    for (std::size_t i = 0; i < subscribers; ++i)
    {
        zmq::socket_t& socket = sockets.emplace_back(context, zmq::socket_type::sub);
        socket.set(zmq::sockopt::rcvhwm, 100'000);
        socket.set(zmq::sockopt::rcvtimeo, 20'000);
        for (const char* topic : {"e.", "h"}) { socket.set(zmq::sockopt::subscribe, topic); }
        socket.connect("ipc://" + args.text("bus") + "/events.sock");
        watchers.emplace_back(first, first + args.number("count") - 1);
    }
    for (zmq::socket_t& socket : sockets)
    {
        do { receive(socket, frames, true); } while (!text(frames[0]).starts_with("h\n")); // it is connected now
        items.push_back({socket.handle(), 0, ZMQ_POLLIN, 0});
    }
    say_ready();
    for (std::size_t done = 0; done < subscribers;)
    {
        if (zmq::poll(items, std::chrono::milliseconds{5000}) == 0) { break; } // the last ones were missed
        for (std::size_t i = 0; i < subscribers; ++i)
        {
            while ((items[i].revents & ZMQ_POLLIN) != 0 && receive(sockets[i], frames, false))
            {
                const std::vector<std::string_view> fields = fields_of(text(frames[0]), 3); // topic, sequence, event
                if (fields.size() != 3 || fields[0] == "h") { continue; }
                const bool before = watchers[i].done();
                watchers[i].see(fields[2]);
                done += !before && watchers[i].done() ? 1U : 0U;
            }
        }
    }
    Report report;
    report_watchers(report, watchers);
    report.print();
}

/// replay: reads --count events from the beginning, --times, or again and again for --seconds.
void replay(const Arguments& args)
{
    const std::size_t count = args.number("count", 200'000);
    zmq::context_t context;
    zmq::socket_t socket = connect(context, args.text("bus"), args.text("service"));
    Frames frames;
    std::vector<double> rates;
    const std::int64_t until = now_ns() + static_cast<std::int64_t>(args.number("seconds")) * 1'000'000'000;
    if (args.number("seconds") > 0) { say_ready(); }
    for (std::size_t turn = 0; args.number("seconds") > 0 ? now_ns() < until : turn < args.number("times", 1); ++turn)
    {
        const std::int64_t began = now_ns();
        std::size_t seen = 0;
        send(socket, {"1", "read", "r", "0", "1000", "{}"});
        while (seen < count)
        {
            const auto fields = expect(socket, frames, "events", 10); // correlation epoch next last gap_from gap_to gap_reason lines
            if (fields.size() < 10 || fields[9].empty()) { die("the journal ended after " + std::to_string(seen) + " events"); }
            // The next page is on its way while this one is taken apart.
            const std::string after = std::string{fields[3]} + ":" + std::string{fields[4]};
            send(socket, {"1", "read", "r", after, "1000", "{}"});
            for (std::string_view lines = fields[9]; !lines.empty(); ++seen)
            {
                const std::string event{lines.substr(0, lines.find('\n'))};
                lines.remove_prefix(event.size() + 1);
            }
        }
        expect(socket, frames, "events", 10);
        rates.push_back(static_cast<double>(seen) / (static_cast<double>(now_ns() - began) * 1e-9));
    }
    std::sort(rates.begin(), rates.end());
    Report report;
    report.add("times", static_cast<double>(rates.size()));
    report.add("per_second", rates[rates.size() / 2]);
    report.print();
}

/// serve: registers as --service and answers every request with --size bytes, until it is killed.
void serve(const Arguments& args)
{
    zmq::context_t context;
    zmq::socket_t socket = connect(context, args.text("bus"), args.text("service"));
    Payload payload{args.number("size", 512)};
    Frames frames;
    say_ready();
    for (std::uint64_t served = 0;;)
    {
        wait_readable(socket, 1'000'000'000);
        bool idle = true;
        while (receive(socket, frames, false))
        {
            const auto fields = fields_of(text(frames[0]), 9);
            if (fields.size() < 9 || fields[1] != "request") { continue; }
            idle = false;
            send(socket, {"1", "reply", fields[2], "ok", payload.make(++served, now_ns())});
        }
        if (idle) { send(socket, {"1", "ping"}); }
    }
}

/// call: --count calls of --command with --window in flight, after --warmup.
void call(const Arguments& args)
{
    zmq::context_t context;
    zmq::socket_t socket = connect(context, args.text("bus"), args.text("service"));
    const std::string command = args.text("command", "lease.list");
    const std::string deadline = std::to_string(unix_now_ms() + 600'000);
    const std::size_t window = args.number("window", 32);
    Payload payload{args.number("size", 512)};
    Frames frames;
    std::vector<std::int64_t> born;
    std::vector<std::int64_t> latencies;
    const auto run = [&](std::size_t count)
    {
        born.clear();
        latencies.clear();
        while (latencies.size() < count)
        {
            while (born.size() < count && born.size() - latencies.size() < window)
            {
                born.push_back(now_ns());
                send(socket, {"1", "call", std::to_string(born.size() - 1), command, deadline, "", "", payload.make(born.size(), born.back())});
            }
            for (bool first = true; receive(socket, frames, first); first = false)
            {
                const auto fields = fields_of(text(frames[0]), 5); // version, verb, correlation, code, body
                if (fields.size() != 5 || fields[1] != "result" || fields[3] != "ok") { die("not a result: " + std::string{text(frames[0])}); }
                std::size_t serial = 0;
                std::from_chars(fields[2].data(), fields[2].data() + fields[2].size(), serial);
                latencies.push_back(now_ns() - born.at(serial));
            }
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

/// vanish: --at-once connections that say hello and are gone, again and again for --seconds.
void vanish(const Arguments& args)
{
    const std::int64_t until = now_ns() + static_cast<std::int64_t>(args.number("seconds", 5)) * 1'000'000'000;
    zmq::context_t context;
    say_ready();
    double count = 0;
    while (now_ns() < until)
    {
        std::vector<zmq::socket_t> sockets;
        for (std::size_t i = 0; i < args.number("at-once", 50); ++i)
        {
            zmq::socket_t& socket = sockets.emplace_back(context, zmq::socket_type::dealer);
            socket.set(zmq::sockopt::linger, 0);
            socket.connect("ipc://" + args.text("bus") + "/commands.sock");
            send(socket, {"1", "hello", "", "1"});
            ++count;
        }
        timespec pause{0, static_cast<long>(args.number("pause-ms", 100)) * 1'000'000};
        ::nanosleep(&pause, nullptr);
    }
    Report report;
    report.add("count", count);
    report.print();
}

/// garbage: messages that are none, --rate a second for --seconds, over a new connection when one is cut.
void garbage(const Arguments& args)
{
    const std::size_t rate = args.number("rate", 1000);
    zmq::context_t context;
    std::optional<zmq::socket_t> socket;
    std::uint64_t sent = 0;
    say_ready();
    const auto some = [&](std::size_t due)
    {
        for (std::size_t i = 0; i < due; ++i, ++sent)
        {
            if (sent % 40 == 0) // by then the one before is ignored, and cut
            {
                socket.emplace(context, zmq::socket_type::dealer);
                socket->set(zmq::sockopt::linger, 0);
                socket->connect("ipc://" + args.text("bus") + "/commands.sock");
            }
            socket->send(zmq::buffer(std::string(400, static_cast<char>('a' + sent % 26))), zmq::send_flags::dontwait);
        }
    };
    pace(rate * args.number("seconds", 5), rate, some, [](std::int64_t ns) { timespec pause{0, ns}; ::nanosleep(&pause, nullptr); });
    Report report;
    report.add("count", static_cast<double>(sent));
    report.print();
}

/// append: --count times --size bytes and fdatasync at the end of --file, nothing else: what the disk allows.
void append(const Arguments& args)
{
    const int file = ::open(args.text("file").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (file < 0) { die("open " + args.text("file")); }
    Payload payload{args.number("size", 512)};
    std::vector<std::int64_t> latencies;
    for (std::size_t i = 0; i < args.number("count", 1000); ++i)
    {
        const std::int64_t began = now_ns();
        const std::string& data = payload.make(i, began);
        if (::write(file, data.data(), data.size()) != static_cast<ssize_t>(data.size()) || ::fdatasync(file) != 0) { die("append"); }
        latencies.push_back(now_ns() - began);
    }
    ::close(file);
    Report report;
    report.add_latency(latencies);
    report.print();
}

} // namespace

int main(int argc, char** argv)
{
    const std::string_view verb = argc > 1 ? argv[1] : "";
    const Arguments args{argc, argv};
    for (const auto& [name, run] : std::initializer_list<std::pair<std::string_view, void (*)(const Arguments&)>>{
             {"publish", publish}, {"subscribe", subscribe}, {"replay", replay}, {"serve", serve}, {"call", call}, {"vanish", vanish}, {"garbage", garbage}, {"append", append}})
    {
        if (verb == name)
        {
            run(args);
            return 0;
        }
    }
    die("usage: drive_bus publish|subscribe|replay|serve|call|vanish|garbage|append --bus DIRECTORY [--OPTION VALUE]...");
}
