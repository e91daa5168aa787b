#pragma once
#include "bus/schema/types.hpp"

// How the broker fares: for `dstack bus top` and for its metrics.
namespace dstack::schema
{

struct PeerStats
{
    std::string caller;
    std::string service;
    std::uint64_t pid = 0;
    std::string since;
    std::string last_seen;
    std::uint64_t messages_in = 0;
    std::uint64_t messages_out = 0;
    std::uint64_t bytes_in = 0;
    std::uint64_t bytes_out = 0;
    std::uint64_t dropped = 0;
    std::uint64_t publishing = 0;
    std::uint64_t calls = 0;
    std::uint64_t reads = 0;
    std::uint64_t behind = 0;
    void describe(Fields& f)
    {
        f("caller", caller, "who it is, as attested");
        f("service", service, "the service that it may speak for; empty: an operator or a tool");
        f("pid", pid, "its process id, as attested; 0: not on this host");
        f("since", since, "when its first message on this connection came, RFC 3339");
        f("last_seen", last_seen, "when its last message came, RFC 3339");
        f("messages_in", messages_in, "messages that came from it");
        f("messages_out", messages_out, "messages that were sent to it, without live events");
        f("bytes_in", bytes_in, "their bytes");
        f("bytes_out", bytes_out, "their bytes");
        f("dropped", dropped, "messages that could not be sent: its queue was full, or it was gone");
        f("publishing", publishing, "events of it that are not yet durable");
        f("calls", calls, "commands of it that have no result yet");
        f("reads", reads, "pages of the journal that it has read");
        f("behind", behind, "events between the end of its last page and the newest one then: a slow consumer's lag");
    }
};

struct CommandCount
{
    std::string code;
    std::uint64_t count = 0;
    void describe(Fields& f)
    {
        f("code", code, "ok, or the error's code");
        f("count", count, "commands that ended so");
    }
};

struct LatencyBucket
{
    std::uint64_t le_ms = 0;
    std::uint64_t count = 0;
    void describe(Fields& f)
    {
        f("le_ms", le_ms, "upper end of the bucket; 0: no end");
        f("count", count, "commands that took at most this long, those of smaller buckets included");
    }
};

struct ServiceStats
{
    std::string service;
    std::string state;
    std::uint64_t pid = 0;
    std::uint64_t restarts = 0;
    std::uint64_t working = 0;
    std::uint64_t waiting = 0;
    std::uint64_t took_us = 0;
    std::vector<CommandCount> results;
    std::vector<LatencyBucket> latency;
    void describe(Fields& f)
    {
        f("service", service, "name on the bus");
        f("state", state, "up or down");
        f("pid", pid, "process id of the last registration");
        f("restarts", restarts, "registrations by another process than before, in this run of the broker");
        f("working", working, "commands that it works on");
        f("waiting", waiting, "commands that wait until it is back");
        f("took_us", took_us, "from a command's arrival to its result, sum over all, in microseconds");
        f("results", results, "commands that have ended, by code");
        f("latency", latency, "commands that have ended, by how long they took");
    }
};

struct BusStats
{
    static constexpr CommandType type{"bus.stats", "bus", Role::viewer, "", 1,
                                      "Counts since the broker started, and what is in its queues now. A rate is the difference of two answers."};
    void describe(Fields&) {}
    struct Reply
    {
        std::string version;
        std::uint64_t time_ms = 0;
        std::uint64_t started_ms = 0;
        std::uint64_t epoch = 0;
        std::uint64_t first_sequence = 0;
        std::uint64_t last_sequence = 0;
        std::string journal_error;
        std::uint64_t events = 0;
        std::uint64_t commits = 0;
        std::uint64_t commit_us = 0;
        std::uint64_t slowest_commit_us = 0;
        std::uint64_t messages_in = 0;
        std::uint64_t messages_out = 0;
        std::uint64_t bytes_in = 0;
        std::uint64_t bytes_out = 0;
        std::uint64_t dropped = 0;
        std::uint64_t refused = 0;
        std::uint64_t malformed = 0;
        std::uint64_t ignored = 0;
        std::uint64_t handshakes_failed = 0;
        std::uint64_t handshakes_abandoned = 0;
        std::uint64_t bytes_waiting = 0;
        std::uint64_t reads = 0;
        std::uint64_t events_waiting = 0;
        std::uint64_t calls_in_flight = 0;
        std::uint64_t reads_running = 0;
        std::uint64_t peers_known = 0;
        std::uint64_t cpu_us = 0;
        std::uint64_t resident_bytes = 0;
        std::vector<ServiceStats> services;
        std::vector<PeerStats> peers;
        void describe(Fields& f)
        {
            f("version", version, "the broker's version");
            f("time_ms", time_ms, "when this was counted, unix time in ms");
            f("started_ms", started_ms, "since when it counts, unix time in ms");
            f("epoch", epoch, "the journal's epoch");
            f("first_sequence", first_sequence, "oldest event of the journal");
            f("last_sequence", last_sequence, "newest durable event");
            f("journal_error", journal_error, "why events are refused now; empty: they are not");
            f("events", events, "events made durable");
            f("commits", commits, "batches of events that were written and synced");
            f("commit_us", commit_us, "time that took, in microseconds");
            f("slowest_commit_us", slowest_commit_us, "the longest of them, in microseconds");
            f("messages_in", messages_in, "messages that came on the commands socket");
            f("messages_out", messages_out, "messages sent there");
            f("bytes_in", bytes_in, "bytes that came");
            f("bytes_out", bytes_out, "bytes sent");
            f("dropped", dropped, "messages that could not be sent: the peer's queue was full, or it was gone");
            f("refused", refused, "connections, commands and events that were refused");
            f.optional("malformed", malformed, "messages that were none");
            f.optional("ignored", ignored, "messages of connections that had sent too many of those");
            f.optional("handshakes_failed", handshakes_failed, "handshakes that broke the protocol, or were for another key");
            f.optional("handshakes_abandoned", handshakes_abandoned, "peers that went away, or said nothing, before the end of the handshake");
            f.optional("bytes_waiting", bytes_waiting, "bytes of answers that peers have not taken yet");
            f("reads", reads, "pages of the journal that were read");
            f("events_waiting", events_waiting, "events that wait for the next batch");
            f("calls_in_flight", calls_in_flight, "commands without a result");
            f("reads_running", reads_running, "pages that are being read");
            f("peers_known", peers_known, "connections that sent something within the last minute");
            f("cpu_us", cpu_us, "processor time of the broker, in microseconds");
            f("resident_bytes", resident_bytes, "memory of the broker");
            f("services", services, "every service that ever registered, by name");
            f("peers", peers, "at most 512 connections, the ones with the most messages first");
        }
    };
};

struct CommandFinished
{
    static constexpr EventType type{"command.finished", "bus", Severity::debug, 1,
                                    "A command with an idempotency key has its result. Not said when its traceparent is not sampled (flags 00)."};
    std::string command;
    std::string service;
    std::string caller;
    std::string code;
    std::string message;
    std::uint64_t took_ms = 0;
    std::uint64_t waited_ms = 0;
    std::string_view subject() const { return command; }
    void describe(Fields& f)
    {
        f("command", command, "its name");
        f("service", service, "who served it");
        f("caller", caller, "who sent it, as attested");
        f("code", code, "ok, or the error's code");
        f("message", message, "the error's text, at most 512 bytes; empty when it succeeded");
        f("took_ms", took_ms, "from its arrival at the broker to its result, in ms");
        f("waited_ms", waited_ms, "part of that before it was delivered: the service was away, or the key was looked up, in ms");
    }
};

} // namespace dstack::schema
