#pragma once
#include "services/auth/record.hpp"
#include "shared/runtime/scope.hpp"
#include <memory>
#include <string>
#include <vector>

namespace dstack::auth
{

struct LedgerOptions
{
    std::string directory;
    milliseconds flush{0};                             ///< 0: on disk before the answer; else flushed so often
    std::uint64_t segment_bytes = 64 * 1024 * 1024;    ///< a file that has grown so large is closed
    std::uint64_t checkpoint_records = 1024;           ///< signed after so many records, ...
    milliseconds checkpoint_every{10'000};             ///< and so often when there are new ones
};

/// A ledger as it is on disk at one moment, for another thread.
struct LedgerSnapshot
{
    std::string directory;
    std::vector<std::uint64_t> files; ///< numbers of their first records, oldest first; the last is the active one
    std::uint64_t active_bytes = 0;
    std::uint64_t newest = 0; ///< number of the last record
};

/// The append-only files of decisions (docs/ledger.md). One process writes them (they are locked); whoever wants may read.
class Ledger
{
    struct Batch;

  public:
    /// Checks what is behind the last signed checkpoint, and the whole file when it is small; `run` checks the rest of it.
    /// An end that a crash left unfinished, of which nobody was told, is cut off, and a record says so. Any other damage is
    /// data_loss with the offset. Blocks: for start-up.
    static Result<std::unique_ptr<Ledger>> open(Loop& loop, LedgerOptions options);
    static Result<std::unique_ptr<Ledger>> open(Loop& loop, const std::string& directory);
    Ledger(const Ledger&) = delete;
    Ledger& operator=(const Ledger&) = delete;
    ~Ledger();

    /// Writes for as long as the scope that runs it lives. Spawn once.
    Task<> run();
    /// Everything that was appended is on disk, and signed: for a clean stop.
    Task<> finish();

    class Append
    {
      public:
        Append(const Append&) = delete;
        Append& operator=(const Append&) = delete;
        bool await_ready() const noexcept;
        void await_suspend(std::coroutine_handle<> handle);
        Result<std::uint64_t> await_resume() const;
        ~Append();

      private:
        friend class Ledger;
        Append(std::shared_ptr<Batch> batch, std::uint64_t sequence, bool wait);
        Append(Error error);
        std::shared_ptr<Batch> batch_;
        std::uint64_t sequence_ = 0;
        bool wait_ = false;
        std::optional<Error> refused_;
        std::optional<Event::Awaiter> awaiter_;
    };
    /// `auto written = co_await ledger.append(record);` The record's number; it is on disk (fsynced) then, unless `flush`
    /// is an interval. Otherwise it is as if never asked. Those that wait together share one fsync.
    Append append(const Record& record);

    /// Up to `limit` entries from that number on, oldest first.
    Task<Result<std::vector<Entry>>> read(std::uint64_t from, std::size_t limit);
    /// Decisions, newest first. An empty `app_id` means all.
    Task<Result<std::vector<schema::Decision>>> newest(std::string app_id, std::size_t limit);

    /// Number of the last record that is on disk.
    std::uint64_t sequence() const;
    /// Names this ledger: the start of the hash of its first record; empty while there is none.
    std::string identity() const;
    /// The policy hash of the newest record about the policy file.
    const std::string& last_policy_hash() const;

    /// Why nothing can be written: every boot is denied; empty when all is well. Tried again every second.
    const std::string& trouble() const;
    /// What an operator should look at before it becomes trouble: little space, checkpoints that cannot be written.
    const std::string& warning() const;
    std::uint64_t free_bytes() const;
    /// Decisions that were denied because they could not be recorded, since it last went well.
    std::uint64_t denied() const;
    /// Records that wait for the disk now.
    std::size_t lag() const;
    /// Set when `trouble` or `warning` changed; whoever waits for it resets it first.
    Event& changed();
    /// Damage that was found after the start. Nothing is appended any more; the process should stop with it.
    const std::optional<Error>& damage() const;
    /// Set when entries were added; whoever waits for it resets it first.
    Event& grown();

    LedgerSnapshot snapshot() const;
    const std::string& directory() const;

    struct State;

  private:
    explicit Ledger(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

} // namespace dstack::auth
