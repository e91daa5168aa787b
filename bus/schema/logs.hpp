#pragma once
#include "bus/schema/types.hpp"

// The log store's words.
namespace dstack::schema
{

struct LogLine
{
    std::uint64_t sequence = 0;
    std::string time;
    std::string channel;
    std::string text;
    void describe(Fields& f)
    {
        f("sequence", sequence, "rises by one per line of this source; a hole is a gap");
        f("time", time, "when it was collected, RFC 3339");
        f("channel", channel, "serial, service, or gap");
        f("text", text, "the line without its newline; for a gap: from, to and reason");
    }
};

struct LogsQuery
{
    static constexpr CommandType type{"logs.query", "logs", Role::viewer, "deployer", 1, "Lines of one source."};
    std::string source;
    std::uint64_t from = 0;
    std::uint32_t lines = 200;
    bool tail = true;
    void describe(Fields& f)
    {
        f("source", source, "VM id, app name, or service name");
        f.optional("from", from, "first sequence that is wanted, when tail is false");
        f.optional("lines", lines, "at most this many, 1 to 10000");
        f.optional("tail", tail, "the newest lines instead of those from `from`");
    }
    struct Reply
    {
        std::string source;
        std::vector<LogLine> lines;
        std::uint64_t next = 0;
        std::string follow_url;
        void describe(Fields& f)
        {
            f("source", source, "the VM id or service name that was meant");
            f("lines", lines, "oldest first");
            f("next", next, "sequence to go on from");
            f.optional("follow_url", follow_url, "where the same source can be followed over HTTP");
        }
    };
};

struct LogGap
{
    static constexpr EventType type{"log.gap", "logs", Severity::warning, 1, "Lines of a source were lost."};
    std::string source;
    std::uint64_t from = 0;
    std::uint64_t to = 0;
    std::uint64_t bytes = 0;
    std::string reason;
    std::string_view subject() const { return source; }
    void describe(Fields& f)
    {
        f("source", source, "VM id or service name");
        f("from", from, "first sequence that is lost");
        f("to", to, "last sequence that is lost");
        f("bytes", bytes, "how many bytes, as far as known");
        f("reason", reason, "quota, truncated, rotated away, flood");
    }
};

} // namespace dstack::schema
