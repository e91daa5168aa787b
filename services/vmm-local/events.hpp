#pragma once
#include "bus/client/client.hpp"
#include "bus/schema/vm.hpp"
#include "shared/runtime/scope.hpp"
#include <memory>

namespace dstack::vmm
{

/// The VMM's events: kept durably in an outbox, in order, until the broker has acknowledged them. Without a bus directory
/// they go to the log only.
class Events
{
  public:
    /// Blocks for a moment: opens the outbox. For start-up.
    static Result<std::unique_ptr<Events>> open(Loop& loop, const std::string& state_dir, const std::string& bus_directory);
    Events(const Events&) = delete;
    Events& operator=(const Events&) = delete;
    ~Events();

    /// Connects in the background and publishes from then on.
    void start();
    template <schema::EventStruct E>
    void emit(E event, std::string traceparent = {})
    {
        emit_raw(bus::Client::make_event(std::move(event), bus::Trace{std::move(traceparent)}));
    }
    /// Returns when all that was emitted so far is durable in the outbox: before an answer that an event follows from.
    Task<> kept();
    /// Waits until what was emitted is durable in the outbox, says goodbye to the bus.
    Task<> stop(milliseconds limit);

  private:
    struct Impl;
    explicit Events(std::unique_ptr<Impl> impl);
    void emit_raw(bus::Client::OutgoingEvent event);
    std::unique_ptr<Impl> impl_;
};

} // namespace dstack::vmm
