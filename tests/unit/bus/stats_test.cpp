#include "bus/broker/stats.hpp"
#include "tests/catch.hpp"

using namespace dstack;
using namespace dstack::bus;

namespace
{
Identity somebody(const char* service, std::uint32_t pid)
{
    Identity who;
    who.uid = 1000;
    who.pid = pid;
    who.service = service;
    return who;
}

Call call_of(const char* service, std::uint64_t received_us)
{
    Call call;
    call.service = service;
    call.received_us = received_us;
    return call;
}
} // namespace

TEST_CASE("peers are counted by connection")
{
    Stats stats{1'000};
    stats.received("a", somebody("auth", 5), 100, 2'000);
    stats.received("a", somebody("auth", 5), 50, 3'000);
    stats.sent("a", 10, true);
    stats.sent("a", 10, false);
    stats.sent("unknown", 7, true);
    stats.read("a", 42);
    stats.received("b", somebody("", 6), 1, 3'000);
    schema::BusStats::Reply out;
    stats.fill(out);
    CHECK(out.started_ms == 1'000);
    CHECK(out.messages_in == 3);
    CHECK(out.bytes_in == 151);
    CHECK(out.messages_out == 2);
    CHECK(out.bytes_out == 17);
    CHECK(out.dropped == 1);
    CHECK(out.peers_known == 2);
    CHECK(stats.fill_peers(out) == std::vector<std::string>{"a", "b"});
    const schema::PeerStats& peer = out.peers[0];
    CHECK(peer.service == "auth");
    CHECK(peer.pid == 5);
    CHECK(peer.messages_in == 2);
    CHECK(peer.messages_out == 1);
    CHECK(peer.dropped == 1);
    CHECK(peer.reads == 1);
    CHECK(peer.behind == 42);
    CHECK(peer.since == "1970-01-01T00:00:02.000Z");
    CHECK(peer.last_seen == "1970-01-01T00:00:03.000Z");
    stats.sweep(3'000 + Stats::peer_kept_ms);
    CHECK(stats.fill_peers(out).size() == 2);
    stats.sweep(3'001 + Stats::peer_kept_ms);
    out.peers.clear();
    CHECK(stats.fill_peers(out).empty());
}

TEST_CASE("a flood of connections does not grow the broker")
{
    Stats stats{0};
    for (std::uint64_t i = 0; i < 5 * Stats::max_peers; ++i)
    {
        stats.received("r" + std::to_string(i), somebody("", 1), 1, i / 3); // three within one ms
    }
    schema::BusStats::Reply out;
    stats.fill(out);
    CHECK(out.peers_known == Stats::max_peers);
    CHECK(out.messages_in == 5 * Stats::max_peers);
    CHECK(stats.fill_peers(out).size() == Stats::max_peers_told);
}

TEST_CASE("commands are counted by code and by how long they took")
{
    Stats stats{0};
    struct Row
    {
        std::uint64_t took_us;
        const char* code;
    };
    const Row rows[] = {{0, "ok"}, {1'000, "ok"}, {1'001, "not_found"}, {30'000'000, "ok"}, {30'000'001, "whatever a service says"}};
    for (const Row& row : rows) { stats.finished(call_of("auth", 10), row.code, 10 + row.took_us); }
    const schema::ServiceStats service = stats.of_service("auth");
    CHECK(service.took_us == 60'002'002);
    REQUIRE(service.results.size() == 3);
    CHECK(service.results[0].code == "internal");
    CHECK(service.results[1].code == "not_found");
    CHECK(service.results[2].code == "ok");
    CHECK(service.results[2].count == 3);
    REQUIRE(service.latency.size() == Stats::bucket_ends.size() + 1);
    CHECK(service.latency[0].le_ms == 1);
    CHECK(service.latency[0].count == 2);
    CHECK(service.latency[1].count == 3);
    CHECK(service.latency[9].count == 4);
    CHECK(service.latency[10].le_ms == 0);
    CHECK(service.latency[10].count == 5);
    CHECK(stats.of_service("nobody").latency.back().count == 0);
}

TEST_CASE("the metrics page")
{
    schema::BusStats::Reply stats;
    stats.version = "1.0\"\\\n";
    stats.started_ms = 1'700'000'000'500;
    stats.commits = 2;
    stats.commit_us = 1'234'500;
    schema::ServiceStats service;
    service.service = "auth";
    service.state = "up";
    service.took_us = 2'000'000;
    service.results = {{"ok", 3}};
    service.latency = {{1, 1}, {1000, 2}, {0, 3}};
    stats.services.push_back(service);
    const std::string page = open_metrics(stats);
    for (const char* line : {"# TYPE dstack_bus info\n", "dstack_bus_info{version=\"1.0\\\"\\\\\\n\"} 1\n", "# UNIT dstack_bus_commit_seconds seconds\n",
                             "dstack_bus_commits_total 2\n", "dstack_bus_commit_seconds_total 1.2345\n", "process_start_time_seconds 1700000000.5\n",
                             "dstack_bus_service_up{service=\"auth\"} 1\n", "dstack_bus_commands_total{service=\"auth\",code=\"ok\"} 3\n",
                             "dstack_bus_command_duration_seconds_bucket{service=\"auth\",le=\"0.001\"} 1\n",
                             "dstack_bus_command_duration_seconds_bucket{service=\"auth\",le=\"1.0\"} 2\n",
                             "dstack_bus_command_duration_seconds_bucket{service=\"auth\",le=\"+Inf\"} 3\n",
                             "dstack_bus_command_duration_seconds_sum{service=\"auth\"} 2.0\n"})
    {
        INFO(line);
        CHECK(page.find(line) != std::string::npos);
    }
    CHECK(page.ends_with("\n# EOF\n"));
}
