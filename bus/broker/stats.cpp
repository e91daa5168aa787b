#include "bus/broker/stats.hpp"
#include "shared/base/time.hpp"
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <sys/resource.h>
#include <unistd.h>

namespace dstack::bus
{

std::uint64_t steady_us()
{
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(now).count());
}

void Stats::received(const std::string& route, const Identity& identity, std::size_t bytes, std::uint64_t now_ms)
{
    ++messages_in_;
    bytes_in_ += bytes;
    auto found = peers_.find(route);
    if (found == peers_.end())
    {
        if (peers_.size() >= max_peers)
        {
            const auto quietest = std::min_element(peers_.begin(), peers_.end(),
                                                   [](const auto& a, const auto& b) { return a.second.seen_ms < b.second.seen_ms; });
            if (quietest->second.seen_ms == now_ms) { return; } // a flood of connections: the totals count it
            peers_.erase(quietest);
        }
        found = peers_.try_emplace(route).first;
        Peer& peer = found->second;
        peer.since_ms = now_ms;
        peer.counts.caller = identity.caller();
        peer.counts.service = identity.service;
        peer.counts.pid = identity.pid;
    }
    Peer& peer = found->second;
    peer.seen_ms = now_ms;
    ++peer.counts.messages_in;
    peer.counts.bytes_in += bytes;
}

void Stats::sent(const std::string& route, std::size_t bytes, bool taken)
{
    ++(taken ? messages_out_ : dropped_);
    if (taken) { bytes_out_ += bytes; }
    const auto found = peers_.find(route);
    if (found == peers_.end()) { return; }
    schema::PeerStats& peer = found->second.counts;
    ++(taken ? peer.messages_out : peer.dropped);
    if (taken) { peer.bytes_out += bytes; }
}

void Stats::read(const std::string& route, std::uint64_t behind)
{
    ++reads_;
    const auto found = peers_.find(route);
    if (found == peers_.end()) { return; }
    ++found->second.counts.reads;
    found->second.counts.behind = behind;
}

void Stats::committed(std::size_t events, std::uint64_t took_us)
{
    ++commits_;
    events_ += events;
    commit_us_ += took_us;
    slowest_commit_us_ = std::max(slowest_commit_us_, took_us);
}

void Stats::finished(const Call& call, std::string_view code, std::uint64_t now_us)
{
    Service& service = services_[call.service]; // the services of the schema: bounded
    // A service may answer any word; what is no code is counted as internal, so that there are never many.
    const std::string_view word = code == "ok" ? code : to_string(errc_from_string(code));
    const auto found = service.results.find(word);
    if (found != service.results.end()) { ++found->second; }
    else { service.results.emplace(word, 1); }
    const std::uint64_t took = now_us > call.received_us ? now_us - call.received_us : 0;
    service.took_us += took;
    const auto end = std::lower_bound(bucket_ends.begin(), bucket_ends.end(), (took + 999) / 1000);
    ++service.buckets[static_cast<std::size_t>(end - bucket_ends.begin())];
}

void Stats::sweep(std::uint64_t now_ms)
{
    std::erase_if(peers_, [now_ms](const auto& entry) { return entry.second.seen_ms + peer_kept_ms < now_ms; });
}

void Stats::fill(schema::BusStats::Reply& out) const
{
    out.started_ms = started_ms_;
    out.events = events_;
    out.commits = commits_;
    out.commit_us = commit_us_;
    out.slowest_commit_us = slowest_commit_us_;
    out.messages_in = messages_in_;
    out.messages_out = messages_out_;
    out.bytes_in = bytes_in_;
    out.bytes_out = bytes_out_;
    out.dropped = dropped_;
    out.refused = refused_;
    out.reads = reads_;
    out.peers_known = peers_.size();
}

schema::ServiceStats Stats::of_service(const std::string& name) const
{
    schema::ServiceStats out;
    out.service = name;
    const auto found = services_.find(name);
    const Service none;
    const Service& service = found == services_.end() ? none : found->second;
    out.took_us = service.took_us;
    for (const auto& [code, count] : service.results) { out.results.push_back({code, count}); }
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < service.buckets.size(); ++i)
    {
        sum += service.buckets[i];
        out.latency.push_back({i < bucket_ends.size() ? bucket_ends[i] : 0, sum});
    }
    return out;
}

std::vector<std::string> Stats::fill_peers(schema::BusStats::Reply& out) const
{
    std::vector<const std::pair<const std::string, Peer>*> order;
    order.reserve(peers_.size());
    for (const auto& entry : peers_) { order.push_back(&entry); }
    const auto traffic = [](const auto* entry) { return entry->second.counts.messages_in + entry->second.counts.messages_out; };
    std::sort(order.begin(), order.end(), [&](const auto* a, const auto* b) { return traffic(a) > traffic(b); });
    order.resize(std::min(order.size(), max_peers_told));
    std::vector<std::string> routes;
    for (const auto* entry : order)
    {
        schema::PeerStats peer = entry->second.counts;
        peer.since = rfc3339(entry->second.since_ms);
        peer.last_seen = rfc3339(entry->second.seen_ms);
        out.peers.push_back(std::move(peer));
        routes.push_back(entry->first);
    }
    return routes;
}

void fill_process(schema::BusStats::Reply& out)
{
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    const auto us = [](const timeval& t) { return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000 + static_cast<std::uint64_t>(t.tv_usec); };
    out.cpu_us = us(usage.ru_utime) + us(usage.ru_stime);
    if (std::FILE* statm = std::fopen("/proc/self/statm", "re"))
    {
        unsigned long pages = 0;
        if (std::fscanf(statm, "%*u %lu", &pages) == 1) { out.resident_bytes = pages * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE)); }
        std::fclose(statm);
    }
}

// --- OpenMetrics -------------------------------------------------------------------------------------------------

namespace
{

std::string escaped(std::string_view text)
{
    std::string out;
    for (const char c : text)
    {
        if (c == '\n') { out += "\\n"; }
        else if (c == '"' || c == '\\') { (out += '\\') += c; }
        else { out += c; }
    }
    return out;
}

/// Microseconds as seconds, without a rounding of its own.
std::string seconds(std::uint64_t us)
{
    std::array<char, 32> text{};
    std::snprintf(text.data(), text.size(), "%llu.%06llu", static_cast<unsigned long long>(us / 1'000'000),
                  static_cast<unsigned long long>(us % 1'000'000));
    std::string out = text.data();
    while (out.ends_with('0') && !out.ends_with(".0")) { out.pop_back(); }
    return out;
}

class Page
{
  public:
    void family(std::string_view name, std::string_view type, std::string_view help)
    {
        name_ = name;
        const std::string_view unit = name_.ends_with("_seconds") ? "seconds" : name_.ends_with("_bytes") ? "bytes" : "";
        text_ += "# TYPE " + name_ + " " + std::string{type} + "\n";
        if (!unit.empty()) { text_ += "# UNIT " + name_ + " " + std::string{unit} + "\n"; }
        text_ += "# HELP " + name_ + " " + escaped(help) + "\n";
    }
    /// `labels` as in `service="auth"`, their values escaped.
    void sample(std::string_view suffix, const std::string& labels, const std::string& value)
    {
        text_ += name_ + std::string{suffix} + (labels.empty() ? "" : "{" + labels + "}") + " " + value + "\n";
    }
    void gauge(std::string_view name, std::string_view help, const std::string& value)
    {
        family(name, "gauge", help);
        sample("", {}, value);
    }
    void counter(std::string_view name, std::string_view help, const std::string& value)
    {
        family(name, "counter", help);
        sample("_total", {}, value);
    }
    std::string end() { return std::move(text_) + "# EOF\n"; }

  private:
    std::string text_;
    std::string name_;
};

std::string label(std::string_view name, std::string_view value) { return std::string{name} + "=\"" + escaped(value) + "\""; }

void add_services(Page& page, const std::vector<schema::ServiceStats>& services)
{
    page.family("dstack_bus_service_up", "gauge", "1 when the service is registered.");
    for (const auto& one : services) { page.sample("", label("service", one.service), one.state == "up" ? "1" : "0"); }
    page.family("dstack_bus_service_restarts", "counter", "Registrations by another process than before.");
    for (const auto& one : services) { page.sample("_total", label("service", one.service), std::to_string(one.restarts)); }
    page.family("dstack_bus_service_commands_in_flight", "gauge", "Commands without a result, by what they wait for.");
    for (const auto& one : services)
    {
        page.sample("", label("service", one.service) + "," + label("state", "working"), std::to_string(one.working));
        page.sample("", label("service", one.service) + "," + label("state", "waiting"), std::to_string(one.waiting));
    }
    page.family("dstack_bus_commands", "counter", "Commands that have ended, by the service that serves them and the result's code.");
    for (const auto& one : services)
    {
        for (const auto& result : one.results)
        {
            page.sample("_total", label("service", one.service) + "," + label("code", result.code), std::to_string(result.count));
        }
    }
    page.family("dstack_bus_command_duration_seconds", "histogram", "From a command's arrival to its result.");
    for (const auto& one : services)
    {
        const std::string service = label("service", one.service);
        for (const auto& bucket : one.latency)
        {
            page.sample("_bucket", service + "," + label("le", bucket.le_ms == 0 ? "+Inf" : seconds(bucket.le_ms * 1000)), std::to_string(bucket.count));
        }
        page.sample("_count", service, std::to_string(one.latency.empty() ? 0 : one.latency.back().count));
        page.sample("_sum", service, seconds(one.took_us));
    }
}
} // namespace

std::string open_metrics(const schema::BusStats::Reply& stats)
{
    const auto number = [](std::uint64_t value) { return std::to_string(value); };
    Page page;
    page.family("dstack_bus", "info", "The broker.");
    page.sample("_info", label("version", stats.version), "1");
    page.counter("dstack_bus_events", "Events made durable.", number(stats.events));
    page.counter("dstack_bus_commits", "Batches of events that were written and synced.", number(stats.commits));
    page.counter("dstack_bus_commit_seconds", "Time that took.", seconds(stats.commit_us));
    page.gauge("dstack_bus_journal_first_sequence", "Oldest event of the journal.", number(stats.first_sequence));
    page.gauge("dstack_bus_journal_last_sequence", "Newest event of the journal.", number(stats.last_sequence));
    page.family("dstack_bus_messages", "counter", "Messages on the commands socket.");
    page.sample("_total", label("direction", "in"), number(stats.messages_in));
    page.sample("_total", label("direction", "out"), number(stats.messages_out));
    page.family("dstack_bus_traffic_bytes", "counter", "Their bytes.");
    page.sample("_total", label("direction", "in"), number(stats.bytes_in));
    page.sample("_total", label("direction", "out"), number(stats.bytes_out));
    page.counter("dstack_bus_messages_dropped", "Messages that could not be sent: a full queue, or a peer that was gone.", number(stats.dropped));
    page.counter("dstack_bus_malformed_messages", "Messages that were none.", number(stats.malformed));
    page.counter("dstack_bus_ignored_messages", "Messages of connections that had sent too many malformed ones.", number(stats.ignored));
    page.counter("dstack_bus_failed_handshakes", "Handshakes that broke the protocol, or were for another key.", number(stats.handshakes_failed));
    page.counter("dstack_bus_abandoned_handshakes", "Peers that went away before the end of the handshake.", number(stats.handshakes_abandoned));
    page.counter("dstack_bus_refusals", "Connections, commands and events that were refused.", number(stats.refused));
    page.counter("dstack_bus_reads", "Pages of the journal that were read.", number(stats.reads));
    page.gauge("dstack_bus_journal_failing", "1 while events are refused because the journal does not take them.", stats.journal_error.empty() ? "0" : "1");
    page.gauge("dstack_bus_events_waiting", "Events that wait for the next batch.", number(stats.events_waiting));
    page.gauge("dstack_bus_commands_in_flight", "Commands without a result.", number(stats.calls_in_flight));
    page.gauge("dstack_bus_reads_running", "Pages that are being read.", number(stats.reads_running));
    page.gauge("dstack_bus_peers", "Connections that sent something within the last minute.", number(stats.peers_known));
    add_services(page, stats.services);
    page.gauge("process_start_time_seconds", "When the broker started, unix time.", seconds(stats.started_ms * 1000));
    page.counter("process_cpu_seconds", "Processor time of the broker.", seconds(stats.cpu_us));
    page.gauge("process_resident_memory_bytes", "Memory of the broker.", number(stats.resident_bytes));
    return page.end();
}

} // namespace dstack::bus
