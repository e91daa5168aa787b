#pragma once
#include "bus/client/outbox.hpp"
#include "services/deployer/workflow.hpp"
#include "shared/state/database.hpp"
#include <map>
#include <memory>
#include <optional>

namespace dstack::deployer
{

/// What a start of the service finds.
struct Loaded
{
    std::vector<AppFacts> apps; ///< in the order they were created
    std::map<std::string, AppSight> sights;
    std::vector<Operation> unfinished; ///< in the order they began
};

/// An answer that was given under an idempotency key.
struct Answered
{
    std::string request; ///< digest of the request, to catch a key that is used for something else
    std::string reply;
};

/// The deployer's database. Everything that it says is in the outbox in the same transaction.
class Journal
{
  public:
    static Result<std::unique_ptr<state::Database>> open(Loop& loop, const std::string& path);
    Journal(state::Database& database, bus::Outbox& outbox) : database_(database), outbox_(outbox) {}

    Task<Result<Loaded>> load();
    Task<Result<std::optional<Answered>>> answered(std::string key);
    Task<Result<std::optional<Operation>>> find(std::string operation);
    /// A new operation, with the answer to give again under `key` (empty: none).
    Task<Result<Done>> begin(Work work, schema::DeployStarted fact, std::string key, Answered answer);
    Task<Result<Done>> save(Work work, std::vector<Fact> facts);
    /// What was seen; with the event when the state is another one.
    Task<Result<Done>> save_sight(std::string name, AppSight sight, std::optional<schema::AppStateChanged> fact);
    /// An event with no record of its own: a request that was refused before it became an operation.
    Task<Result<Done>> say(schema::DeployFailed fact, std::string traceparent);

  private:
    state::Database& database_;
    bus::Outbox& outbox_;
};

} // namespace dstack::deployer
