// Reserves leases over the bus as many clients at once, each with one reservation under way. Speaks the protocol of bus/README.md
// without the project's own client. Which service it is depends on the path it is run from (exe: identity rules).
//   drive_leases reserve --bus DIRECTORY --run NAME --clients N --count N --kind cid|port
#include "tests/bench/measure.hpp"
#include <charconv>
#include <zmq.hpp>

using namespace dstack::bench;

namespace
{

void send(zmq::socket_t& socket, const std::string& frame) { socket.send(zmq::buffer(frame), zmq::send_flags::none); }

std::string receive(zmq::socket_t& socket)
{
    zmq::message_t part;
    if (!socket.recv(part, zmq::recv_flags::none)) { die("the broker said nothing for 20 s"); }
    std::string out{static_cast<const char*>(part.data()), part.size()};
    while (part.more()) { (void)socket.recv(part, zmq::recv_flags::none); }
    return out;
}

struct Peer
{
    zmq::socket_t socket;
    std::int64_t born = 0;
};

zmq::socket_t connect(zmq::context_t& context, const std::string& directory)
{
    zmq::socket_t socket{context, zmq::socket_type::dealer};
    socket.set(zmq::sockopt::linger, 1000);
    socket.set(zmq::sockopt::rcvtimeo, 20'000);
    socket.connect("ipc://" + directory + "/commands.sock");
    send(socket, "1\nhello\n\n1");
    if (receive(socket).find("welcome") == std::string::npos) { die("not welcome"); }
    return socket;
}

/// A port at one of many addresses, so that a hundred thousand fit.
std::string wish(const std::string& kind, std::size_t number)
{
    if (kind == "cid") { return R"({"kind":"cid","purpose":"bench"})"; }
    const std::size_t host = number / 500;
    return R"({"kind":"port","address":"127.)" + std::to_string(1 + host / 60'000 % 200) + "." + std::to_string(host / 250 % 240) + "." +
           std::to_string(1 + host % 250) + R"(","purpose":"80/tcp of the guest"})";
}

} // namespace

int main(int argc, char** argv)
{
    const Arguments args{argc, argv};
    const std::string directory = args.text("bus");
    const std::string run = args.text("run", "r");
    const std::string kind = args.text("kind", "port");
    const std::size_t count = args.number("count", 1000);
    const std::size_t clients = args.number("clients", 1);
    const std::string deadline = std::to_string(unix_now_ms() + 600'000);
    zmq::context_t context;
    std::vector<Peer> peers;
    std::vector<zmq::pollitem_t> items;
    for (std::size_t i = 0; i < clients; ++i) { peers.push_back({connect(context, directory)}); }
    for (Peer& peer : peers) { items.push_back({peer.socket.handle(), 0, ZMQ_POLLIN, 0}); }
    std::vector<std::int64_t> latencies;
    std::size_t asked = 0;
    const auto ask = [&](Peer& peer)
    {
        if (asked == count) { return; }
        const std::string number = std::to_string(asked);
        peer.born = now_ns();
        send(peer.socket, "1\ncall\n" + number + "\nlease.reserve\n" + deadline + "\n\n\n" + R"({"key":"k","owner":")" + run + "-" + number + R"(","wishes":[)" +
                              wish(kind, asked) + R"(],"ttl_ms":86400000})");
        ++asked;
    };
    const std::int64_t began = now_ns();
    for (Peer& peer : peers) { ask(peer); }
    while (latencies.size() < count)
    {
        if (zmq::poll(items, std::chrono::milliseconds{20'000}) == 0) { die("no answer within 20 s"); }
        for (std::size_t i = 0; i < peers.size(); ++i)
        {
            if ((items[i].revents & ZMQ_POLLIN) == 0) { continue; }
            const std::string answer = receive(peers[i].socket);
            if (!answer.starts_with("1\nresult\n") || answer.find("\nok\n") == std::string::npos) { die("not granted: " + answer.substr(0, 400)); }
            latencies.push_back(now_ns() - peers[i].born);
            ask(peers[i]);
        }
    }
    Report report;
    report.add("per_second", static_cast<double>(count) / (static_cast<double>(now_ns() - began) * 1e-9));
    report.add_latency(latencies);
    report.print();
}
