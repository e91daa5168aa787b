#pragma once
#include "bus/broker/journal_file.hpp"
#include "bus/broker/retention.hpp"
#include "shared/base/result.hpp"
#include "shared/runtime/scope.hpp"
#include "shared/state/database.hpp"
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace dstack::bus
{

/// An event on its way into the journal.
struct JournalEntry
{
    std::string publisher; ///< whom to answer; of no concern to the journal
    std::string id;
    std::string_view type; ///< of the schema, which lives for ever
    std::string service;   ///< who published it
    std::string subject;
    int severity = 0;
    std::uint64_t time_ms = 0;
    std::string envelope; ///< the CloudEvent up to its sequence; whole after append()

    // Set by append().
    std::uint64_t sequence = 0;
    bool duplicate = false;     ///< the id was there already, under this sequence
    std::size_t unfinished = 0; ///< size of the envelope without its end: an entry whose append failed may be appended again

    std::size_t charged_bytes = 0; ///< what the publisher's quota gets back; of no concern to the journal
};

struct JournalQuery
{
    std::uint64_t after = 0;    ///< events behind this sequence
    std::uint64_t since_ms = 0; ///< and not older than this unix time
    std::string type_prefix{};
    std::string subject{};
    std::string source{};
    int min_severity = 0;
    std::size_t limit = 1000;
};

struct JournalPage
{
    std::string lines;          ///< the CloudEvents, each ended by a newline
    std::uint64_t next = 0;     ///< read on after this sequence
    std::uint64_t last = 0;     ///< newest event in the journal
    std::uint64_t gap_from = 0; ///< 0: no gap before the first event
    std::uint64_t gap_to = 0;
    std::string gap_reason;
};

/// A result that is kept for an idempotency key.
struct KeptResult
{
    std::string request_hash;
    std::string code;
    std::string body;
};

/// The durable event stream, and what else the broker must not forget. SQLite in WAL mode with synchronous=FULL: one thread
/// appends (a transaction of as many events as there are), one reads, one checkpoints.
class Journal
{
  public:
    /// Checks what it needs (see journal_file.hpp): data_loss with the place when the journal is damaged.
    static Result<std::unique_ptr<Journal>> open(Loop& loop, const std::string& path, Retention retention);
    Journal(const Journal&) = delete;
    Journal& operator=(const Journal&) = delete;

    std::uint64_t epoch() const { return epoch_; }
    std::uint64_t first() const { return first_; }
    std::uint64_t last() const { return last_; }
    /// Events that were acknowledged once and were not in the journal when it was opened; from 0: none.
    const LostTail& lost_tail() const { return lost_tail_; }

    using Batch = std::shared_ptr<std::vector<JournalEntry>>;
    /// Durable when it returns. One at a time.
    Task<Result<Done>> append(Batch batch);
    Task<Result<JournalPage>> read(JournalQuery query);
    /// Removes some of the events that retention does not keep; true: there are more.
    Task<Result<bool>> trim(std::uint64_t now_ms);
    /// Whether max_events alone asks for trim().
    bool over_full() const;

    /// Services that ever registered: a call to one of them waits for it instead of failing at once.
    Task<Result<Done>> remember_service(std::string service);
    const std::vector<std::string>& known_services() const { return services_; }

    Task<Result<std::optional<KeptResult>>> find_result(std::string scope, std::string key);
    Task<Result<Done>> keep_result(std::string scope, std::string key, KeptResult result, std::uint64_t now_ms);

  private:
    Journal() = default;
    std::string path_;
    Retention retention_;
    std::unique_ptr<state::Database> writer_;
    std::unique_ptr<state::Database> reader_;
    HighWater high_water_;
    std::uint64_t epoch_ = 0;
    std::uint64_t first_ = 1;
    std::uint64_t last_ = 0;
    LostTail lost_tail_;
    std::uint64_t ticked_ms_ = 0;
    std::vector<std::string> services_;
};

int severity_rank(std::string_view severity);

} // namespace dstack::bus
