#pragma once
#include "bus/client/client.hpp"
#include "shared/runtime/scope.hpp"
#include <deque>

namespace dstack::kms
{

/// Publishes in order and in the background, for as long as it lives: a key release does not wait for the bus. The
/// evidence of a decision is the ledger of dstack-auth, which is durable before the KMS gets its answer. Over its bound
/// the oldest is dropped with a log line.
class EventQueue
{
  public:
    /// An empty directory: without the mesh, nothing is published.
    EventQueue(Loop& loop, std::string bus_directory, std::string service);

    template <schema::EventStruct E>
    void add(E event)
    {
        push(bus::Client::make_event(std::move(event)));
    }
    /// Waits at most `limit` until everything is published and says goodbye to the bus.
    Task<> drain(milliseconds limit);

  private:
    void push(bus::Client::OutgoingEvent event);
    Task<> run();
    Task<Result<Done>> emptied();

    Loop& loop_;
    bool on_bus_;
    bus::Client client_;
    std::deque<bus::Client::OutgoingEvent> waiting_;
    Event wake_;
    Event empty_;
    Scope scope_;
};

} // namespace dstack::kms
