#include "services/dstack/bus_view.hpp"
#include "services/dstack/text.hpp"
#include "shared/base/time.hpp"
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>

namespace dstack::cli
{

namespace
{
using json = nlohmann::ordered_json;

constexpr std::uint64_t gone_ms = 5'000;

std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

/// A counter that begins anew has counted `now`.
std::uint64_t grown(std::uint64_t before, std::uint64_t now) { return now >= before ? now - before : now; }

struct PerSecond
{
    std::uint64_t interval_ms;
    double operator()(std::uint64_t before, std::uint64_t now) const
    {
        return static_cast<double>(grown(before, now)) * 1000.0 / static_cast<double>(interval_ms);
    }
};

std::uint64_t ended(const schema::ServiceStats& service) { return service.latency.empty() ? 0 : service.latency.back().count; }

std::uint64_t failed(const schema::ServiceStats& service)
{
    std::uint64_t sum = 0;
    for (const auto& result : service.results) { sum += result.code == "ok" ? 0 : result.count; }
    return sum;
}

std::string key_of(const schema::PeerStats& peer) { return peer.caller + '\n' + peer.since; }

std::string fixed(double value, int digits)
{
    std::array<char, 64> text{};
    std::snprintf(text.data(), text.size(), "%.*f", digits, value);
    return text.data();
}

/// 0, 0.3, 12, 3.4k, 120k, 1.2M
std::string short_number(double value)
{
    if (value < 0.05) { return "0"; }
    if (value < 9.95) { return fixed(value, 1); }
    if (value < 9'999.5) { return fixed(value, 0); }
    if (value < 999'500) { return fixed(value / 1e3, value < 99'950 ? 1 : 0) + "k"; }
    return fixed(value / 1e6, value < 99'950'000 ? 1 : 0) + "M";
}

double rounded(double value) { return std::round(value * 1000.0) / 1000.0; }

/// What makes somebody look at a peer.
std::uint64_t trouble(const BusTop::Peer& peer) { return peer.now.behind + peer.now.dropped; }

std::string head_of(const BusTop& top)
{
    const auto& now = top.now;
    std::string out = "dstack-bus " + printable(now.version) + ", up " + age(rfc3339(now.started_ms), now.time_ms) + ", cpu " +
                      fixed(top.cpu_percent, 1) + " %, memory " + short_number(static_cast<double>(now.resident_bytes)) + "B\n";
    if (!now.journal_error.empty()) { out += "journal   takes no events: " + now.journal_error + "\n"; }
    out += "events    " + short_number(top.events) + "/s, newest " + std::to_string(now.epoch) + ":" + std::to_string(now.last_sequence) +
           ", a commit takes " + fixed(top.mean_commit_ms, 2) + " ms, the slowest took " +
           fixed(static_cast<double>(now.slowest_commit_us) / 1000.0, 2) + " ms\n";
    out += "commands  " + short_number(top.commands) + "/s\n";
    out += "messages  in " + short_number(top.messages_in) + "/s, " + short_number(top.bytes_in) + "B/s; out " + short_number(top.messages_out) +
           "/s, " + short_number(top.bytes_out) + "B/s; dropped " + std::to_string(now.dropped) + ", refused " + std::to_string(now.refused) + "\n";
    out += "queues    " + std::to_string(now.events_waiting) + " events, " + std::to_string(now.calls_in_flight) + " commands, " +
           std::to_string(now.reads_running) + " reads; " + std::to_string(now.peers_known) + " peers\n";
    return out;
}
} // namespace

BusTop compare(const schema::BusStats::Reply& before, schema::BusStats::Reply now)
{
    const bool restarted = before.started_ms != now.started_ms;
    static const schema::BusStats::Reply nothing;
    const schema::BusStats::Reply& base = restarted ? nothing : before;
    BusTop top;
    const std::uint64_t since = restarted ? now.started_ms : before.time_ms;
    top.interval_ms = now.time_ms > since ? now.time_ms - since : 1;
    const PerSecond rate{top.interval_ms};
    top.events = rate(base.events, now.events);
    top.messages_in = rate(base.messages_in, now.messages_in);
    top.messages_out = rate(base.messages_out, now.messages_out);
    top.bytes_in = rate(base.bytes_in, now.bytes_in);
    top.bytes_out = rate(base.bytes_out, now.bytes_out);
    top.cpu_percent = rate(base.cpu_us, now.cpu_us) / 10'000.0;
    const std::uint64_t commits = grown(base.commits, now.commits);
    if (commits > 0) { top.mean_commit_ms = static_cast<double>(grown(base.commit_us, now.commit_us)) / static_cast<double>(commits) / 1000.0; }

    std::map<std::string, const schema::ServiceStats*> services;
    for (const auto& service : base.services) { services[service.service] = &service; }
    for (auto& service : now.services)
    {
        static const schema::ServiceStats blank;
        const auto found = services.find(service.service);
        const schema::ServiceStats& was = found == services.end() ? blank : *found->second;
        BusTop::Service row;
        row.ended = grown(ended(was), ended(service));
        row.failed = grown(failed(was), failed(service));
        row.commands = rate(ended(was), ended(service));
        if (row.ended > 0) { row.mean_ms = static_cast<double>(grown(was.took_us, service.took_us)) / static_cast<double>(row.ended) / 1000.0; }
        top.commands += row.commands;
        row.now = std::move(service);
        top.services.push_back(std::move(row));
    }
    std::map<std::string, const schema::PeerStats*> peers;
    for (const auto& peer : base.peers) { peers[key_of(peer)] = &peer; }
    for (auto& peer : now.peers)
    {
        static const schema::PeerStats blank;
        const auto found = peers.find(key_of(peer));
        const schema::PeerStats& was = found == peers.end() ? blank : *found->second;
        BusTop::Peer row;
        row.in = rate(was.messages_in, peer.messages_in);
        row.out = rate(was.messages_out, peer.messages_out);
        row.bytes_in = rate(was.bytes_in, peer.bytes_in);
        row.bytes_out = rate(was.bytes_out, peer.bytes_out);
        row.now = std::move(peer);
        top.peers.push_back(std::move(row));
    }
    std::stable_sort(top.peers.begin(), top.peers.end(),
                     [](const BusTop::Peer& a, const BusTop::Peer& b)
                     { return trouble(a) != trouble(b) ? trouble(a) > trouble(b) : a.in + a.out > b.in + b.out; });
    now.services.clear();
    now.peers.clear();
    top.now = std::move(now);
    return top;
}

std::string top_text(const BusTop& top, std::size_t rows)
{
    std::string out = head_of(top) + "\n";
    std::vector<std::vector<std::string>> services{{"SERVICE", "STATE", "PID", "RESTARTS", "CMD/S", "MEAN MS", "FAILED", "WORKING", "WAITING"}};
    for (const auto& row : top.services)
    {
        services.push_back({printable(row.now.service), printable(row.now.state), std::to_string(row.now.pid), std::to_string(row.now.restarts),
                            short_number(row.commands), row.ended == 0 ? "-" : fixed(row.mean_ms, 2), std::to_string(row.failed),
                            std::to_string(row.now.working), std::to_string(row.now.waiting)});
    }
    out += table(services) + "\n";
    std::vector<std::vector<std::string>> peers{{"PEER", "PID", "IN/S", "OUT/S", "IN B/S", "OUT B/S", "PUBLISHING", "CALLS", "BEHIND", "DROPPED", "SEEN"}};
    for (const auto& row : top.peers)
    {
        // Clients say something every 2 s. Who has been silent for longer and left nothing behind is gone: only --json lists it.
        const std::uint64_t seen = unix_ms_from_rfc3339(row.now.last_seen).value_or(0);
        const bool gone = seen + gone_ms < top.now.time_ms && row.now.publishing + row.now.calls == 0;
        if (gone) { continue; }
        peers.push_back({printable(row.now.caller), std::to_string(row.now.pid), short_number(row.in), short_number(row.out), short_number(row.bytes_in),
                         short_number(row.bytes_out), std::to_string(row.now.publishing), std::to_string(row.now.calls), std::to_string(row.now.behind),
                         std::to_string(row.now.dropped), age(row.now.last_seen, top.now.time_ms)});
    }
    const std::size_t used = static_cast<std::size_t>(std::count(out.begin(), out.end(), '\n'));
    if (rows > 0 && used + peers.size() > rows)
    {
        const std::size_t fit = rows > used + 2 ? rows - used - 1 : 2;
        if (fit < peers.size())
        {
            const std::size_t more = peers.size() - fit;
            peers.resize(fit);
            return out + table(peers) + std::to_string(more) + " more\n";
        }
    }
    return out + table(peers);
}

std::string top_json(const BusTop& top)
{
    const auto& now = top.now;
    json out{{"version", now.version},
             {"startedAt", rfc3339(now.started_ms)},
             {"time", rfc3339(now.time_ms)},
             {"interval_ms", top.interval_ms},
             {"cursor", std::to_string(now.epoch) + ":" + std::to_string(now.last_sequence)},
             {"firstSequence", now.first_sequence},
             {"cpuPercent", rounded(top.cpu_percent)},
             {"resident_bytes", now.resident_bytes},
             {"rates", {{"events", rounded(top.events)}, {"commands", rounded(top.commands)}, {"messagesIn", rounded(top.messages_in)},
                        {"messagesOut", rounded(top.messages_out)}, {"in_bytes", rounded(top.bytes_in)}, {"out_bytes", rounded(top.bytes_out)}}},
             {"journal_error", now.journal_error},
             {"commit", {{"mean_ms", rounded(top.mean_commit_ms)}, {"slowest_ms", rounded(static_cast<double>(now.slowest_commit_us) / 1000.0)}}},
             {"queues", {{"events", now.events_waiting}, {"commands", now.calls_in_flight}, {"reads", now.reads_running}}},
             {"dropped", now.dropped},
             {"refused", now.refused},
             {"peersKnown", now.peers_known}};
    json services = json::array();
    for (const auto& row : top.services)
    {
        services.push_back({{"service", row.now.service}, {"state", row.now.state}, {"pid", row.now.pid}, {"restarts", row.now.restarts},
                            {"commands", rounded(row.commands)}, {"ended", row.ended}, {"failed", row.failed}, {"mean_ms", rounded(row.mean_ms)},
                            {"working", row.now.working}, {"waiting", row.now.waiting}});
    }
    json peers = json::array();
    for (const auto& row : top.peers)
    {
        peers.push_back({{"caller", row.now.caller}, {"service", row.now.service}, {"pid", row.now.pid}, {"since", row.now.since},
                         {"lastSeen", row.now.last_seen}, {"messagesIn", rounded(row.in)}, {"messagesOut", rounded(row.out)},
                         {"in_bytes", rounded(row.bytes_in)}, {"out_bytes", rounded(row.bytes_out)}, {"publishing", row.now.publishing},
                         {"calls", row.now.calls}, {"reads", row.now.reads}, {"behind", row.now.behind}, {"dropped", row.now.dropped}});
    }
    out["services"] = std::move(services);
    out["peers"] = std::move(peers);
    return dump(out);
}

std::string bus_services_text(const schema::BusServices::Reply& reply, std::uint64_t now_ms)
{
    std::vector<std::vector<std::string>> rows{{"SERVICE", "STATE", "PID", "VERSION", "SINCE", "LAST SEEN", "RESTARTS", "PENDING"}};
    for (const auto& entry : reply.services)
    {
        const std::string seen = age(entry.last_seen, now_ms);
        rows.push_back({printable(entry.service), printable(entry.state), entry.pid == 0 ? "-" : std::to_string(entry.pid),
                        entry.version.empty() ? "-" : printable(entry.version), age(entry.since, now_ms), seen == "-" ? seen : seen + " ago",
                        std::to_string(entry.restarts), std::to_string(entry.pending)});
    }
    return table(rows);
}

std::string bus_services_json(const schema::BusServices::Reply& reply)
{
    json list = json::array();
    for (const auto& entry : reply.services)
    {
        list.push_back({{"service", entry.service}, {"state", entry.state}, {"pid", entry.pid}, {"version", entry.version}, {"since", entry.since},
                        {"lastSeen", entry.last_seen}, {"restarts", entry.restarts}, {"pending", entry.pending}});
    }
    return dump(json{{"version", reply.version},
                     {"cursor", std::to_string(reply.epoch) + ":" + std::to_string(reply.last_sequence)},
                     {"services", std::move(list)}});
}

} // namespace dstack::cli
