#pragma once
#include "bus/client/client.hpp"

namespace dstack::bus
{

/// The events of a service whose other state is no database: each is kept in an outbox of its own, and from there published, in
/// order, until the broker has acknowledged it. Without a bus directory nothing is kept or published.
class Publisher
{
  public:
    /// The outbox is `state_dir`/outbox.db. Blocks for a moment: for start-up.
    static Result<std::unique_ptr<Publisher>> open(Loop& loop, const std::string& state_dir, ClientConfig config);
    Publisher(const Publisher&) = delete;
    Publisher& operator=(const Publisher&) = delete;
    ~Publisher();

    /// The connection, for what the service serves; nullptr without a bus.
    Client* client();
    /// Connects in the background and publishes from then on.
    void start();
    /// Never waits. While the outbox cannot be written (disk full) the event waits in memory; of more than 10,000 the oldest is
    /// lost, which the log says.
    template <schema::EventStruct E>
    void emit(E event, std::string traceparent = {})
    {
        emit_raw(Client::make_event(std::move(event), Trace{std::move(traceparent)}));
    }
    /// Returns when all that was emitted so far is durable: before an answer that an event follows from. When the outbox cannot be
    /// written, it returns after `limit`.
    Task<> kept(milliseconds limit);
    /// Waits at most `limit` until what was emitted is durable, then says goodbye to the bus.
    Task<> stop(milliseconds limit);

  private:
    struct Impl;
    explicit Publisher(std::unique_ptr<Impl> impl);
    void emit_raw(Client::OutgoingEvent event);
    std::unique_ptr<Impl> impl_;
};

} // namespace dstack::bus
