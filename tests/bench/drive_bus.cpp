// Drives a dstack-bus over its sockets, as bus/README.md specifies them and without the project's own client.
// Which service it is depends on the path it is run from (exe: identity rules).
#include "tests/bench/measure.hpp"
#include <charconv>
#include <poll.h>
#include <random>
#include <zmq.hpp>

using namespace dstack::bench;

namespace
{

constexpr std::size_t most_events_per_message = 128;

using Frames = std::vector<zmq::message_t>;

std::string_view text(const zmq::message_t& frame) { return {static_cast<const char*>(frame.data()), frame.size()}; }

void put(zmq::socket_t& socket, std::string_view frame, bool more)
{
    socket.send(zmq::buffer(frame), more ? zmq::send_flags::sndmore : zmq::send_flags::none);
}

void send(zmq::socket_t& socket, const std::vector<std::string_view>& frames)
{
    for (std::size_t i = 0; i < frames.size(); ++i) { put(socket, frames[i], i + 1 < frames.size()); }
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

/// Waits for the next message that is one of `verbs`; anything unexpected ends the run.
void expect(zmq::socket_t& socket, Frames& frames, std::string_view verb)
{
    receive(socket, frames, true);
    if (frames.size() < 2 || text(frames[1]) != verb)
    {
        std::string got;
        for (const auto& frame : frames) { (got += text(frame).substr(0, 200)) += ' '; }
        die("expected " + std::string{verb} + ", got " + got);
    }
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
    expect(socket, frames, "welcome");
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
    std::string last_cursor() const { return last_cursor_; }
    void forget_latencies() { latencies_.clear(); }

    /// One message with `count` events.
    void send_events(std::size_t count)
    {
        put(socket_, "1", true);
        put(socket_, "publish", true);
        for (std::size_t i = 0; i < count; ++i)
        {
            const std::uint64_t serial = born_.size();
            const std::int64_t born = now_ns();
            born_.push_back(born);
            put(socket_, ids_.next(serial), true);
            put(socket_, type_, true);
            put(socket_, "app-" + std::to_string(serial % 100), true);
            put(socket_, "info", true);
            put(socket_, std::to_string(unix_now_ms()), true);
            put(socket_, "", true);
            put(socket_, payload_.make(serial, born), i + 1 < count);
        }
    }

    /// Takes one message of acknowledgements. False: there was none (`wait` false).
    bool take(bool wait)
    {
        if (!receive(socket_, frames_, wait)) { return false; }
        if (frames_.size() < 4 || text(frames_[1]) != "published" || frames_.size() % 2 != 0)
        {
            die("not an acknowledgement: " + std::string{frames_.size() > 1 ? text(frames_[1]) : ""} + " " +
                std::string{frames_.size() > 3 ? text(frames_.back()) : ""});
        }
        const std::int64_t now = now_ns();
        for (std::size_t i = 2; i < frames_.size(); i += 2)
        {
            const std::uint64_t serial = Ids::count_of(text(frames_[i]));
            if (serial >= born_.size()) { die("an acknowledgement of an event that was not sent"); }
            latencies_.push_back(now - born_[serial]);
            ++acknowledged_;
        }
        last_cursor_ = text(frames_.back());
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

    /// `rate` events a second for `count` events, sent on time whatever the acknowledgements do.
    void run_at(std::size_t count, std::size_t rate)
    {
        const std::uint64_t first = born_.size();
        const std::uint64_t until = first + count;
        const std::int64_t began = now_ns();
        while (acknowledged_ < until)
        {
            while (take(false)) {}
            const std::int64_t elapsed = now_ns() - began;
            const auto due = std::min<std::uint64_t>(until, first + static_cast<std::uint64_t>(static_cast<double>(elapsed) * 1e-9 * static_cast<double>(rate)) + 1);
            while (sent() < due) { send_events(1); }
            const std::int64_t next = sent() >= until ? began + elapsed + 1'000'000
                                                      : began + static_cast<std::int64_t>(static_cast<double>(sent() - first) * 1e9 / static_cast<double>(rate));
            const std::int64_t pause = next - now_ns();
            if (pause > 0) { wait_readable(pause); }
        }
    }

  private:
    void wait_readable(std::int64_t ns)
    {
        if ((socket_.get(zmq::sockopt::events) & ZMQ_POLLIN) != 0) { return; }
        pollfd descriptor{socket_.get(zmq::sockopt::fd), POLLIN, 0};
        const timespec limit{static_cast<time_t>(ns / 1'000'000'000), static_cast<long>(ns % 1'000'000'000)};
        ::ppoll(&descriptor, 1, &limit, nullptr);
    }

    zmq::socket_t& socket_;
    std::string type_;
    Payload payload_;
    Ids ids_;
    std::vector<std::int64_t> born_;
    std::vector<std::int64_t> latencies_;
    std::uint64_t acknowledged_ = 0;
    std::string last_cursor_;
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
    if (args.number("rate") > 0) { publisher.run_at(count, args.number("rate")); }
    else { publisher.run(count, window, gather); }
    const double seconds = static_cast<double>(now_ns() - began) * 1e-9;
    Report report;
    report.add("count", static_cast<double>(count));
    report.add("per_second", static_cast<double>(count) / seconds);
    auto latencies = publisher.latencies();
    report.add_latency(latencies);
    report.print();
}

} // namespace

int main(int argc, char** argv)
{
    const std::string_view verb = argc > 1 ? argv[1] : "";
    const Arguments args{argc, argv};
    if (verb == "publish") { publish(args); }
    else { die("usage: drive_bus publish --bus DIRECTORY [--OPTION VALUE]..."); }
    return 0;
}
