// Hostile messages to a whole broker over its real socket: whatever comes, it goes on answering others.
#include "bus/broker/broker.hpp"
#include "shared/log/log.hpp"
#include <array>
#include <cstdlib>
#include <filesystem>
#include <unistd.h>

using namespace dstack;

namespace
{

void check(bool holds)
{
    if (!holds) { std::abort(); }
}

/// A broker that takes this process for the service vmm-local, in a directory that ends with the process.
struct Bed
{
    std::string directory = "/tmp/broker-fuzz-" + std::to_string(::getpid());
    Loop loop;
    std::unique_ptr<bus::Broker> broker;
    zmq::context_t context{1};

    Bed()
    {
        log::init("fuzz", log::Level::error);
        std::filesystem::create_directories(directory);
        bus::BrokerConfig config;
        config.directory = directory;
        config.journal = directory + "/journal.db";
        config.retention.max_events = 1000;
        config.identity.services["vmm-local"] = "exe:" + std::filesystem::read_symlink("/proc/self/exe").string();
        auto journal = bus::Journal::open(loop, config.journal, config.retention);
        check(static_cast<bool>(journal));
        broker = std::make_unique<bus::Broker>(loop, config, std::move(*journal));
        check(static_cast<bool>(broker->listen()));
    }

    std::unique_ptr<zmq::socket_t> peer()
    {
        auto out = std::make_unique<zmq::socket_t>(context, zmq::socket_type::dealer);
        out->set(zmq::sockopt::linger, 0);
        out->connect("ipc://" + directory + "/commands.sock");
        return out;
    }

    /// Whether the broker answers a ping of this peer within a second.
    bool answers(zmq::socket_t& socket)
    {
        bus::wire::Frames ping;
        ping.push_back(bus::wire::line({bus::wire::version, bus::wire::ping}));
        bus::wire::send(socket, ping);
        bus::wire::Frames answer;
        for (int turn = 0; turn < 10'000; ++turn)
        {
            uv_run(loop.raw(), UV_RUN_NOWAIT);
            while (bus::wire::receive(socket, answer))
            {
                if (answer.size() == 1 && bus::wire::Line{bus::wire::text(answer[0])}.verb() == bus::wire::pong) { return true; }
            }
            ::usleep(100);
        }
        return false;
    }
};

constexpr std::array<std::string_view, 24> words{
    "1", "hello", "ping", "bye", "publish", "call", "read", "reply", "vmm-local", "vm.ready", "lease.granted", "bus.services",
    "bus.stats", "bus.create_token", "lease.reserve", "{}", "{\"vm\":\"v\"}", "info", "0", "now", "1:1", "time:1", "99999999999999", ""};

/// Messages of frames of words of the protocol and of raw bytes: 0 ends a message, 255 a frame, 1 to 24 is a word, n is a
/// field of n - 24 bytes.
std::vector<std::vector<std::string>> messages(const std::uint8_t* data, std::size_t size)
{
    std::vector<std::vector<std::string>> out(1);
    for (std::size_t i = 0; i < size && out.size() < 64; ++i)
    {
        const std::size_t code = data[i];
        std::vector<std::string>& message = out.back();
        if (code == 0)
        {
            out.emplace_back();
            continue;
        }
        if (code == 255 || message.empty()) { message.emplace_back(); }
        else { message.back() += '\n'; }
        if (code <= words.size()) { message.back() += words[code - 1]; }
        else if (code != 255)
        {
            const std::size_t length = std::min(code - words.size(), size - i - 1);
            message.back().append(reinterpret_cast<const char*>(data) + i + 1, length);
            i += length;
        }
    }
    return out;
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size)
{
    static Bed bed;
    static std::unique_ptr<zmq::socket_t> attacker = bed.peer();
    static std::unique_ptr<zmq::socket_t> other = bed.peer();
    static int runs = 0;
    if (++runs % 16 == 0) { attacker = bed.peer(); } // a peer that only sends garbage is ended after a while
    for (const std::vector<std::string>& message : messages(data, size))
    {
        bus::wire::Frames frames;
        for (const std::string& part : message) { frames.push_back(bus::wire::frame(part)); }
        bus::wire::send(*attacker, frames);
    }
    check(bed.answers(*other));
    return 0;
}
