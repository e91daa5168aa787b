#pragma once
#include "bus/client/client.hpp"
#include "bus/protocol/frames.hpp"
#include "bus/protocol/zmq_watch.hpp"
#include <deque>
#include <list>
#include <map>
#include <unordered_map>

namespace dstack::bus
{

/// A request that has no answer yet. Lives in the frame of the coroutine that waits for it.
struct Outstanding
{
    Outstanding(Loop& loop, std::string request) : line(std::move(request)), done(loop) {}
    std::string line;
    std::uint64_t number = 0; ///< counts requests: they are sent again in the order in which they were made
    bool repeatable = true; ///< may be sent again to a restarted broker
    bool sent = false;
    Event done;
    std::optional<zmq::message_t> answer;
    std::optional<Error> error;
};

/// One page of the journal as it came over the wire.
struct Page
{
    std::uint64_t epoch = 0;
    std::uint64_t next = 0;
    std::uint64_t last = 0;
    std::uint64_t gap_from = 0;
    std::uint64_t gap_to = 0;
    std::string gap_reason;
    std::vector<std::string> envelopes;
};

struct LiveFrame
{
    std::uint64_t sequence = 0;
    std::string type;
    std::string envelope;
};

/// What one subscription sees of the live socket.
struct LiveInbox
{
    explicit LiveInbox(Loop& loop) : wake(loop) {}
    static constexpr std::size_t max_frames = 8192;
    std::deque<LiveFrame> frames;
    bool overflowed = false; ///< frames were dropped: read them back from the journal
    std::uint64_t head = 0;
    std::uint64_t epoch = 0;
    Event wake;
};

/// The sockets of a Client, what is on its way, and what it serves.
struct Client::State
{
    State(Loop& loop, ClientConfig config);
    ~State();

    struct Served
    {
        RawHandler handler;
        std::size_t max_in_flight = 0;
        std::size_t running = 0;
    };
    struct Request
    {
        std::string delivery;
        std::string command;
        std::string body;
        CallContext context;
    };

    void start();
    /// The same keys, key exchange and time limits for both sockets.
    void prepare(zmq::socket_t& socket) const;
    std::string commands_address() const;
    std::string events_address() const;
    std::string where() const; ///< for messages: "the bus in /run/dstack/bus", "the bus at host:9700"
    Error absent(std::string what) const;
    void on_monitor();
    void on_handshake_failure(int event, int value);
    /// Nothing more will come from this broker: whoever waits learns it now.
    void refused(Error error);
    /// After a refusal ZeroMQ does not try again by itself.
    void reconnect();
    void on_message();
    void on_live();
    void on_tick();
    void handle(zmq::message_t frame);
    void welcomed();
    void lost();
    void send_hello();
    void transmit(std::string_view line);
    void answer_outstanding(std::string_view id, zmq::message_t answer);
    void accept_request(Request request);
    void start_next(Served& served);
    Task<> run_request(Request request);
    void reply(std::string delivery, std::string code, std::string body);

    /// The answer is one line: parse it where it stays.
    Task<Result<zmq::message_t>> exchange(std::string id, std::string line, bool repeatable, milliseconds limit, std::string what);
    Task<Result<Page>> read_page(std::string after, std::size_t limit, Filter filter);
    void open_live();

    Loop& loop;
    ClientConfig config;
    zmq::context_t context{1};
    zmq::socket_t commands;
    zmq::socket_t monitor;
    zmq::socket_t live;
    std::unique_ptr<ZmqWatch> commands_watch;
    std::unique_ptr<ZmqWatch> monitor_watch;
    std::unique_ptr<ZmqWatch> live_watch;
    UvHandle<uv_timer_t> tick;

    bool welcome = false;
    bool goodbye = false;
    std::optional<Error> refusal;
    bool refused_for_good = false; ///< the refusal is of this peer, not of the moment
    bool session_over = false;     ///< ZeroMQ has given the connection up
    bool shaking_hands = false;    ///< connected, and no word yet of how the handshake went
    int unanswered_knocks = 0;     ///< attempts in a row that found nobody listening
    int silent_closes = 0;         ///< the peer closed, without a word, in the middle of this many handshakes in a row
    bool deaf = false;             ///< the connection was given up because nothing came
    int silent_ticks = 0;          ///< since the broker said something
    Event changed;
    std::uint64_t next_correlation = 1;
    std::unordered_map<std::string, Outstanding*> outstanding;
    std::uint64_t requests = 0; ///< made so far
    std::map<std::string, Served, std::less<>> served;
    std::deque<Request> queued;
    std::unordered_map<std::string, std::vector<std::string>> running_keys; ///< command+key -> deliveries that wait for it
    std::deque<std::string> replies;                                       ///< made while the broker was away
    std::list<LiveInbox*> inboxes;
    Scope scope;
};

EventRecord parse_envelope(std::string envelope);

} // namespace dstack::bus
