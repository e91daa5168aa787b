#include "services/vmm-local/events.hpp"
#include "bus/client/outbox.hpp"
#include "shared/log/log.hpp"
#include "shared/state/database.hpp"

namespace dstack::vmm
{

struct Events::Impl
{
    Impl(Loop& l, std::unique_ptr<state::Database> d, const std::string& bus_directory)
        : loop(l), database(std::move(d)), client(l, bus::ClientConfig{bus_directory, "vmm-local"}), outbox(l, *database, client), adding(l), publishing(l)
    {
    }
    Loop& loop;
    std::unique_ptr<state::Database> database;
    bus::Client client;
    bus::Outbox outbox;
    Scope adding;
    Scope publishing;

    static Task<> add(Impl* self, bus::Client::OutgoingEvent event)
    {
        const std::string type = event.type;
        auto job = [event = std::move(event)](state::Connection& db) { return bus::Outbox::add(db, event); };
        auto added = co_await self->database->run(job);
        if (!added) { log::error("event not kept", {{"type", type}, {"error", added.error().message}}); }
        self->outbox.wake();
    }

    static Task<> publish(Impl* self)
    {
        bool connected = false;
        while (!connected)
        {
            auto done = co_await self->client.connect(milliseconds{10'000});
            connected = static_cast<bool>(done);
            if (!connected)
            {
                log::warn("bus not reached, trying again", {{"error", done.error().message}});
                co_await sleep_for(self->loop, milliseconds{500});
            }
        }
        co_await self->outbox.run();
    }
};

Events::Events(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Events::~Events() = default;

Result<std::unique_ptr<Events>> Events::open(Loop& loop, const std::string& state_dir, const std::string& bus_directory)
{
    if (bus_directory.empty()) { return std::unique_ptr<Events>{new Events{nullptr}}; }
    const std::vector<std::string> migrations{std::string{bus::Outbox::migration()}};
    auto database = state::Database::open(loop, state_dir + "/outbox.db", migrations);
    if (!database) { return std::move(database).error(); }
    return std::unique_ptr<Events>{new Events{std::make_unique<Impl>(loop, std::move(*database), bus_directory)}};
}

void Events::start()
{
    if (impl_) { impl_->publishing.spawn(Impl::publish(impl_.get())); }
}

void Events::emit_raw(bus::Client::OutgoingEvent event)
{
    log::info("event", {{"type", event.type}, {"vm", event.subject}, {"data", event.data}});
    if (impl_) { impl_->adding.spawn(Impl::add(impl_.get(), std::move(event))); }
}

namespace
{
Task<Result<Done>> drained(Scope& scope)
{
    co_await scope.drain();
    co_return Done{};
}
} // namespace

Task<> Events::kept()
{
    if (!impl_) { co_return; }
    auto nothing = [](state::Connection&) -> Result<Done> { return Done{}; }; // jobs run in order: those before it are done
    auto done = co_await impl_->database->run(nothing);
    (void)done; // what could not be kept has been said
}

Task<> Events::stop(milliseconds limit)
{
    if (!impl_) { co_return; }
    auto draining = drained(impl_->adding);
    auto bounded = with_timeout(impl_->loop, limit, "outbox", std::move(draining));
    auto done = co_await bounded;
    if (!done) { log::warn("events not kept before the stop", {{"error", done.error().message}}); }
    impl_->publishing.cancel();
    co_await impl_->client.disconnect(limit);
}

} // namespace dstack::vmm
