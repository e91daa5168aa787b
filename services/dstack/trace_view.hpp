#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::cli
{

/// One event as the tree is made of it, in the order of the journal.
struct TraceEvent
{
    std::uint64_t time_ms = 0;
    std::string id;
    std::string cursor;
    std::string type;
    std::string source; ///< the service's name
    std::string subject;
    std::string severity;
    std::string traceparent;
    std::string data; ///< JSON object
};

struct TraceNode
{
    enum class Kind { command, operation, step, event } kind = Kind::event;
    std::string name;
    std::string detail;
    std::string source;
    std::string status;         ///< ok, running, an error code, undone; empty for an event
    std::string cursor;         ///< of the event that says so
    std::uint64_t begin_ms = 0;
    std::uint64_t end_ms = 0;   ///< of an event: its begin
    bool related = false;       ///< it carries no trace: it is about the same app or VM, at the same time
    bool bad = false;           ///< failed, denied, or of severity warning or error
    std::vector<TraceNode> children;
};

struct Trace
{
    std::string trace_id;
    std::uint64_t begin_ms = 0;
    std::uint64_t end_ms = 0;
    std::size_t events = 0; ///< related ones included
    std::vector<TraceNode> roots;
};

/// Reads of the stream what belongs to one trace. Bounded.
class TraceCollector
{
  public:
    static constexpr std::size_t max_events = 20'000;
    static constexpr std::size_t max_candidates = 20'000;
    explicit TraceCollector(std::string trace_id) : trace_id_(std::move(trace_id)) {}
    void add(TraceEvent event);
    bool empty() const { return events_.empty(); }
    bool truncated() const { return truncated_; }
    /// With the events that carry no trace but are about an app or VM of the trace, while it went on.
    Trace build() const;

  private:
    std::string trace_id_;
    std::vector<TraceEvent> events_;
    std::vector<TraceEvent> candidates_;
    bool truncated_ = false;
};

/// The trace id in a traceparent; empty when it is none.
std::string_view trace_id_of(std::string_view traceparent);
/// 32 lower-case hex digits, or a whole traceparent: its trace id. Empty: it is something else.
std::string_view as_trace_id(std::string_view text);

std::string trace_text(const Trace& trace);
std::string trace_json(const Trace& trace);

} // namespace dstack::cli
