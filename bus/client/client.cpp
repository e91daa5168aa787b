#include "bus/client/client.hpp"
#include "bus/client/connection.hpp"
#include "bus/schema/catalog.hpp"
#include "shared/base/time.hpp"
#include "shared/base/uuid.hpp"
#include <array>
#include <sys/random.h>

namespace dstack::bus
{

namespace
{

std::string random_hex(std::size_t bytes)
{
    static constexpr std::string_view digits = "0123456789abcdef";
    std::array<unsigned char, 32> random{};
    if (::getrandom(random.data(), bytes, 0) != static_cast<ssize_t>(bytes)) { std::abort(); }
    std::string out;
    for (std::size_t i = 0; i < bytes; ++i) { (out += digits[random[i] >> 4]) += digits[random[i] & 15]; }
    return out;
}

int severity_rank(std::string_view severity)
{
    if (severity == "debug" || severity.empty()) { return 0; }
    if (severity == "info") { return 1; }
    if (severity == "warning") { return 2; }
    return 3;
}

Task<Result<Done>> wait_for(Event* event)
{
    co_await event->wait();
    co_return Done{};
}

bool matches(const EventRecord& event, const Filter& filter)
{
    return event.type.starts_with(filter.type_prefix) && (filter.subject.empty() || event.subject == filter.subject) &&
           (filter.source.empty() || event.source == "/dstack/" + filter.source) &&
           severity_rank(event.severity) >= severity_rank(filter.min_severity);
}

} // namespace

std::string to_string(const Cursor& cursor) { return std::to_string(cursor.epoch) + ':' + std::to_string(cursor.sequence); }

Result<Cursor> cursor_from_string(std::string_view text)
{
    const auto colon = text.find(':');
    const auto epoch = wire::number(text.substr(0, colon));
    const auto sequence = colon == std::string_view::npos ? std::nullopt : wire::number(text.substr(colon + 1));
    if (!epoch || !sequence)
    {
        return Error{Errc::invalid_argument, "'" + std::string{text} + "' is no cursor", "a cursor is EPOCH:SEQUENCE, as in an event's `sequence`", {}};
    }
    return Cursor{*epoch, *sequence};
}

std::string make_traceparent() { return "00-" + random_hex(16) + '-' + random_hex(8) + "-01"; }

std::string child_traceparent(std::string_view parent)
{
    if (parent.size() != 55 || !parent.starts_with("00-")) { return make_traceparent(); }
    return std::string{parent.substr(0, 36)} + random_hex(8) + std::string{parent.substr(52)};
}

Client::Client(Loop& loop, ClientConfig config) : state_(std::make_unique<State>(loop, std::move(config))) {}
Client::~Client() = default;
Loop& Client::loop() { return state_->loop; }

Task<Result<Done>> Client::connect(milliseconds deadline)
{
    State& state = *state_;
    state.start();
    const auto until = std::chrono::steady_clock::now() + deadline;
    while (!state.welcome)
    {
        if (state.refusal && state.refusal->code != Errc::already_exists) { co_return *state.refusal; }
        const auto left = std::chrono::duration_cast<milliseconds>(until - std::chrono::steady_clock::now());
        // Nobody listens at all: for another host that is an answer, as it is for a missing socket on this one.
        const bool nobody = state.config.remote && state.unanswered_knocks >= 5;
        if (left.count() <= 0 || nobody)
        {
            if (state.refusal) { co_return *state.refusal; }
            co_return state.absent({});
        }
        state.changed.reset();
        auto change = wait_for(&state.changed);
        auto changed = co_await with_timeout(state.loop, left, "connect", std::move(change));
        (void)changed; // the loop looks again, and at the clock
    }
    co_return Done{};
}

Task<> Client::disconnect(milliseconds deadline)
{
    State& state = *state_;
    const auto until = std::chrono::steady_clock::now() + deadline;
    while (state.scope.size() > 0 && std::chrono::steady_clock::now() < until)
    {
        co_await sleep_for(state.loop, milliseconds{2});
    }
    if (!state.welcome) { co_return; }
    state.transmit(wire::joined({wire::version, wire::bye}));
    state.goodbye = false;
    while (!state.goodbye && state.welcome && std::chrono::steady_clock::now() < until)
    {
        co_await sleep_for(state.loop, milliseconds{1});
    }
    state.goodbye = true;
}

Client::OutgoingEvent Client::blank_event(const schema::EventType& type, Trace trace)
{
    OutgoingEvent out;
    out.id = uuid_v7();
    out.type = type.name;
    out.severity = schema::to_string(type.severity);
    out.time_ms = unix_ms();
    out.traceparent = std::move(trace.traceparent);
    return out;
}

Task<Result<Cursor>> Client::publish_raw(OutgoingEvent event, milliseconds deadline)
{
    const std::string what = "publish " + event.type;
    const bool whole = wire::is_field(event.id) && wire::is_field(event.subject) && wire::is_field(event.traceparent);
    if (!whole) { co_return Error{Errc::invalid_argument, what + ": a newline in its id, subject or traceparent", {}, {}}; }
    std::string line = wire::joined({wire::version, wire::publish, event.id, event.type, event.subject, event.severity, std::to_string(event.time_ms),
                                     event.traceparent, event.data});
    auto answer = co_await state_->exchange(event.id, std::move(line), true, deadline, what);
    if (!answer) { co_return std::move(answer).error(); }
    const wire::Line said{wire::text(*answer)};
    if (said.verb() == wire::unpublished) { co_return wire::error_from(said.at(2), said.at(3)).within(what); }
    std::string_view pair = said.at(1);
    wire::next_field(pair); // the id
    co_return cursor_from_string(pair);
}

Task<Result<std::string>> Client::call_raw(std::string_view command, std::string body, CallOptions options)
{
    const schema::CommandType* type = schema::find_command(command);
    // Looking twice is harmless; doing twice is not, so what changes something always carries a key.
    const bool reads = type != nullptr && type->role == schema::Role::viewer;
    if (!reads && options.idempotency_key.empty()) { options.idempotency_key = random_hex(16); }
    if (options.traceparent.empty()) { options.traceparent = make_traceparent(); }
    const std::string id = "c" + std::to_string(state_->next_correlation++);
    const std::uint64_t deadline_ms = unix_ms() + static_cast<std::uint64_t>(options.deadline.count());
    if (!wire::is_field(options.idempotency_key)) { co_return Error{Errc::invalid_argument, std::string{command} + ": a newline in the idempotency key", {}, {}}; }
    std::string line = wire::joined({wire::version, wire::call, id, command, std::to_string(deadline_ms), options.idempotency_key, options.traceparent, body});
    // The broker answers at the deadline with more knowledge of what was going on; give that answer time to arrive.
    const milliseconds limit = options.deadline + milliseconds{500};
    std::string what{command};
    auto answer = co_await state_->exchange(id, std::move(line), true, limit, std::move(what));
    if (!answer) { co_return std::move(answer).error(); }
    const wire::Line said{wire::text(*answer)};
    if (said.at(2) == wire::ok) { co_return std::string{said.at(3)}; }
    co_return wire::error_from(said.at(2), said.at(3));
}

void Client::serve_raw(std::string_view command, RawHandler handler, std::size_t max_in_flight)
{
    State::Served served;
    served.handler = std::move(handler);
    served.max_in_flight = max_in_flight;
    state_->served.insert_or_assign(std::string{command}, std::move(served));
}

// --- subscriptions ----------------------------------------------------------------------------------------------

struct Subscription::State
{
    State(Client::State& c, Filter f, From start) : client(c), filter(std::move(f)), from(start), inbox(c.loop)
    {
        client.inboxes.push_back(&inbox);
    }
    ~State() { client.inboxes.remove(&inbox); }

    std::string position() const
    {
        if (begun) { return to_string(cursor); }
        switch (from.kind)
        {
        case From::Kind::now: return "now";
        case From::Kind::beginning: return "0";
        case From::Kind::cursor: return to_string(from.cursor);
        case From::Kind::time: return "time:" + std::to_string(from.time_ms);
        }
        return "now";
    }

    void take_page(Page page)
    {
        if (page.gap_to != 0) { items.emplace_back(Gap{page.gap_from, page.gap_to, std::move(page.gap_reason)}); }
        for (std::string& envelope : page.envelopes) { items.emplace_back(parse_envelope(std::move(envelope))); }
        begun = true;
        cursor = Cursor{page.epoch, page.next};
        if (page.next < page.last) { return; }
        live = true;
        if (!caught_up) { items.emplace_back(CaughtUp{cursor}); }
        caught_up = true;
    }

    /// Takes what continues the stream; a hole sends us back to the journal.
    void take_live()
    {
        if (std::exchange(inbox.overflowed, false)) { live = false; }
        while (live && !inbox.frames.empty())
        {
            LiveFrame frame = std::move(inbox.frames.front());
            inbox.frames.pop_front();
            if (frame.sequence <= cursor.sequence) { continue; }
            if (frame.sequence != cursor.sequence + 1)
            {
                live = false;
                break;
            }
            if (!frame.type.starts_with(filter.type_prefix))
            {
                cursor.sequence = frame.sequence;
                continue;
            }
            EventRecord event = parse_envelope(std::move(frame.envelope));
            if (event.cursor.epoch != cursor.epoch) // the journal was replaced: its head has not said so yet
            {
                live = false;
                break;
            }
            cursor.sequence = frame.sequence;
            if (matches(event, filter)) { items.emplace_back(std::move(event)); }
        }
        const bool other_epoch = inbox.epoch != 0 && inbox.epoch != cursor.epoch;
        if (other_epoch || (live && inbox.frames.empty() && inbox.head > cursor.sequence)) { live = false; }
        if (!live) { inbox.frames.clear(); }
    }

    Client::State& client;
    Filter filter;
    From from;
    LiveInbox inbox;
    Cursor cursor;
    bool begun = false;
    bool live = false;
    bool caught_up = false;
    std::deque<StreamItem> items;
};

Subscription::Subscription(std::unique_ptr<State> state) : state_(std::move(state)) {}
Subscription::Subscription(Subscription&&) noexcept = default;
Subscription::~Subscription() = default;

Subscription Client::subscribe(Filter filter, From from)
{
    state_->start();
    state_->open_live();
    return Subscription{std::make_unique<Subscription::State>(*state_, std::move(filter), from)};
}

Cursor Subscription::position() const { return state_->begun && state_->items.empty() ? state_->cursor : Cursor{}; }

Task<Result<StreamItem>> Subscription::next()
{
    State& self = *state_;
    while (self.items.empty())
    {
        if (self.client.refused_for_good && !self.client.welcome && self.client.config.service.empty()) { co_return *self.client.refusal; }
        if (self.live)
        {
            self.inbox.wake.reset();
            self.take_live();
            if (self.items.empty() && self.live) { co_await self.inbox.wake.wait(); }
            continue;
        }
        std::string position = self.position();
        // A blank first page for "now": only where the stream is.
        auto page = co_await self.client.read_page(std::move(position), 1000, self.filter);
        if (page)
        {
            self.take_page(std::move(*page));
            continue;
        }
        const Errc code = page.error().code;
        const bool passing = code == Errc::unavailable || code == Errc::deadline_exceeded || code == Errc::resource_exhausted;
        if (!passing) { co_return std::move(page).error(); }
        co_await sleep_for(self.client.loop, milliseconds{50});
    }
    StreamItem item = std::move(self.items.front());
    self.items.pop_front();
    co_return item;
}

} // namespace dstack::bus
