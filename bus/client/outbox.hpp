#pragma once
#include "bus/client/client.hpp"

namespace dstack::state
{
class Database;
class Connection;
} // namespace dstack::state

namespace dstack::bus
{

/// Events that are committed together with the state change that they tell of, and published until the broker has
/// acknowledged them: neither is ever there without the other, across a crash of either side.
/// Needs the table of `Outbox::migration` in the owner's database.
class Outbox
{
  public:
    /// One of the database's migrations.
    static std::string_view migration();

    Outbox(Loop& loop, state::Database& database, Client& client);
    Outbox(const Outbox&) = delete;
    Outbox& operator=(const Outbox&) = delete;
    ~Outbox();

    /// Inside a transaction of the owner, on the database's thread: `Outbox::add(connection, Client::make_event(...))`.
    static Result<Done> add(state::Connection& connection, const Client::OutgoingEvent& event);
    /// After the commit, on the loop: there is something to publish.
    void wake();
    /// Publishes in order, for as long as the scope that runs it lives. Spawn once.
    Task<> run();

    struct State;

  private:
    std::unique_ptr<State> state_;
};

} // namespace dstack::bus
