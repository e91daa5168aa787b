#pragma once
#include "services/auth/record.hpp"
#include "shared/runtime/scope.hpp"
#include <deque>
#include <memory>
#include <string>
#include <vector>

namespace dstack::auth
{

/// The append-only file of decisions. One process writes it (it is locked); whoever wants may read it.
class Ledger
{
  public:
    /// Walks the whole chain. A last line without its end is what a crash left of a record that nobody was told of: it
    /// is cut off, and a record says so. Any other damage is data_loss with the offset. Blocks: for start-up.
    static Result<std::unique_ptr<Ledger>> open(Loop& loop, const std::string& directory);
    Ledger(const Ledger&) = delete;
    Ledger& operator=(const Ledger&) = delete;
    ~Ledger();

    /// Writes batches for as long as the scope that runs it lives. Spawn once.
    Task<> run();
    /// On disk (fsynced) when it returns without error; then as if never asked otherwise. Those that wait together
    /// share one fsync.
    Task<Result<Entry>> append(Record record);

    /// Up to `limit` entries from that number on, oldest first.
    Task<Result<std::vector<Entry>>> read(std::uint64_t from, std::size_t limit);
    /// Decisions among the newest 1000 entries, newest first. An empty `app_id` means all.
    std::vector<schema::Decision> newest(std::string_view app_id, std::size_t limit) const;

    std::uint64_t sequence() const;
    /// Names this ledger: the start of the hash of its first record; empty while there is none.
    std::string identity() const;
    /// The policy hash of the newest record about the policy file.
    const std::string& last_policy_hash() const;
    /// Why the last append failed; empty when it did not.
    const std::string& trouble() const;
    /// Set when entries were added; whoever waits for it resets it first.
    Event& grown();

    struct State;

  private:
    explicit Ledger(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

} // namespace dstack::auth
