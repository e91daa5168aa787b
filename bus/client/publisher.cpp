#include "bus/client/publisher.hpp"
#include "bus/client/outbox.hpp"
#include "shared/log/log.hpp"
#include "shared/runtime/scope.hpp"
#include "shared/state/database.hpp"
#include <deque>

namespace dstack::bus
{

namespace
{
constexpr std::size_t max_waiting = 10'000;
constexpr milliseconds connect_limit{10'000};
constexpr milliseconds retry_after{500};
} // namespace

struct Publisher::Impl
{
    Impl(Loop& l, std::unique_ptr<state::Database> d, ClientConfig config)
        : loop(l), database(std::move(d)), client(l, std::move(config)), outbox(l, *database, client), more(l), empty(l), keeping(l), publishing(l)
    {
        empty.set();
    }
    Loop& loop;
    std::unique_ptr<state::Database> database;
    Client client;
    Outbox outbox;
    std::deque<Client::OutgoingEvent> waiting; ///< not yet in the outbox
    Event more;
    Event empty;
    Scope keeping;
    Scope publishing;

    Task<> keep()
    {
        bool said = false;
        for (;;)
        {
            if (waiting.empty())
            {
                empty.set();
                more.reset();
                co_await more.wait();
                continue;
            }
            const std::vector<Client::OutgoingEvent> batch(waiting.begin(), waiting.end());
            auto job = [batch](state::Connection& db) -> Result<Done>
            {
                for (const Client::OutgoingEvent& event : batch)
                {
                    auto added = Outbox::add(db, event);
                    if (!added) { return added; }
                }
                return Done{};
            };
            auto added = co_await database->run(job);
            if (added)
            {
                forget(batch);
                outbox.wake();
                said = false;
                continue;
            }
            if (!said) { log::error("events not kept yet", {{"count", batch.size()}, {"error", added.error().message}}); }
            said = true;
            co_await sleep_for(loop, retry_after);
        }
    }

    /// Some of them may have been dropped meanwhile, from the front.
    void forget(const std::vector<Client::OutgoingEvent>& kept)
    {
        while (!waiting.empty() && std::any_of(kept.begin(), kept.end(), [this](const auto& event) { return event.id == waiting.front().id; }))
        {
            waiting.pop_front();
        }
    }

    Task<> publish()
    {
        bool connected = false;
        while (!connected)
        {
            auto done = co_await client.connect(connect_limit);
            connected = static_cast<bool>(done);
            if (!connected)
            {
                log::warn("bus not reached, trying again", {{"error", done.error().message}});
                co_await sleep_for(loop, retry_after);
            }
        }
        co_await outbox.run();
    }

    Task<Result<Done>> emptied()
    {
        co_await empty.wait();
        co_return Done{};
    }
};

Publisher::Publisher(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Publisher::~Publisher() = default;

Result<std::unique_ptr<Publisher>> Publisher::open(Loop& loop, const std::string& state_dir, ClientConfig config)
{
    if (config.directory.empty()) { return std::unique_ptr<Publisher>{new Publisher{nullptr}}; }
    const std::vector<std::string> migrations{std::string{Outbox::migration()}};
    auto database = state::Database::open(loop, state_dir + "/outbox.db", migrations);
    if (!database) { return std::move(database).error(); }
    auto out = std::unique_ptr<Publisher>{new Publisher{std::make_unique<Impl>(loop, std::move(*database), std::move(config))}};
    out->impl_->keeping.spawn(out->impl_->keep());
    return out;
}

Client* Publisher::client() { return impl_ ? &impl_->client : nullptr; }

void Publisher::start()
{
    if (impl_) { impl_->publishing.spawn(impl_->publish()); }
}

void Publisher::emit_raw(Client::OutgoingEvent event)
{
    log::info("event", {{"type", event.type}, {"subject", event.subject}, {"data", event.data}});
    if (!impl_) { return; }
    if (impl_->waiting.size() >= max_waiting)
    {
        log::error("event lost: too many wait for the outbox", {{"type", impl_->waiting.front().type}, {"subject", impl_->waiting.front().subject}});
        impl_->waiting.pop_front();
    }
    impl_->waiting.push_back(std::move(event));
    impl_->empty.reset();
    impl_->more.set();
}

Task<> Publisher::kept(milliseconds limit)
{
    if (!impl_) { co_return; }
    auto waiting = impl_->emptied();
    std::string what = "keep events";
    auto bounded = with_timeout(impl_->loop, limit, std::move(what), std::move(waiting));
    auto done = co_await bounded;
    if (!done) { log::warn("events are in memory only", {{"count", impl_->waiting.size()}}); }
}

Task<> Publisher::stop(milliseconds limit)
{
    if (!impl_) { co_return; }
    co_await kept(limit);
    impl_->keeping.cancel();
    impl_->publishing.cancel();
    co_await impl_->client.disconnect(limit);
}

} // namespace dstack::bus
