#pragma once
#include "shared/base/result.hpp"
#include "shared/runtime/scope.hpp"
#include "shared/state/database.hpp"
#include <memory>
#include <string>
#include <vector>

namespace dstack::bus
{

/// An event before it has its place in the stream.
struct PendingEvent
{
    std::string id;
    std::string type;
    std::string service; ///< who published it
    std::string subject;
    std::string severity;
    std::uint64_t time_ms = 0;
    std::string traceparent;
    std::string data; ///< well-formed JSON
};

struct JournalEvent
{
    std::uint64_t sequence = 0;
    bool duplicate = false; ///< it was there already, under this sequence
    std::string type;
    std::string envelope; ///< the CloudEvent, one line
};

struct JournalQuery
{
    std::uint64_t after = 0; ///< events behind this sequence
    std::uint64_t since_ms = 0; ///< and not older than this unix time
    std::string type_prefix;
    std::string subject;
    std::string source;
    int min_severity = 0;
    std::size_t limit = 1000;
};

struct JournalPage
{
    std::vector<JournalEvent> events;
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

/// The durable event stream, and what else the broker must not forget. SQLite in WAL mode with synchronous=FULL on a
/// thread of its own; every append is one transaction of as many events as there are.
class Journal
{
  public:
    static Result<std::unique_ptr<Journal>> open(Loop& loop, const std::string& path, std::uint64_t max_events);

    std::uint64_t epoch() const { return epoch_; }
    std::uint64_t first() const { return first_; }
    std::uint64_t last() const { return last_; }

    /// Durable when it returns. An id that is there already yields its old sequence.
    Task<Result<std::vector<JournalEvent>>> append(std::vector<PendingEvent> batch);
    Task<Result<JournalPage>> read(JournalQuery query);

    /// Services that ever registered: a call to one of them waits for it instead of failing at once.
    Task<Result<Done>> remember_service(std::string service);
    const std::vector<std::string>& known_services() const { return services_; }

    Task<Result<std::optional<KeptResult>>> find_result(std::string scope, std::string key);
    Task<Result<Done>> keep_result(std::string scope, std::string key, KeptResult result, std::uint64_t now_ms);

  private:
    Journal() = default;
    std::unique_ptr<state::Database> database_;
    std::uint64_t epoch_ = 0;
    std::uint64_t first_ = 1;
    std::uint64_t last_ = 0;
    std::uint64_t max_events_ = 0;
    std::vector<std::string> services_;
};

int severity_rank(std::string_view severity);

} // namespace dstack::bus
