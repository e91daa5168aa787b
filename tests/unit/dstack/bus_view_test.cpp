#include "services/dstack/bus_view.hpp"
#include "tests/catch.hpp"
#include <nlohmann/json.hpp>

using namespace dstack;
using namespace dstack::cli;

namespace
{
schema::BusStats::Reply sample()
{
    schema::BusStats::Reply out;
    out.started_ms = 1'000;
    out.time_ms = 10'000;
    out.events = 100;
    out.commits = 10;
    out.commit_us = 5'000;
    out.messages_in = 7;
    schema::ServiceStats service;
    service.service = "auth";
    service.state = "up";
    service.took_us = 1'000;
    service.results = {{"not_found", 1}, {"ok", 1}};
    service.latency = {{1, 2}, {0, 2}};
    out.services.push_back(service);
    schema::PeerStats peer;
    peer.caller = "auth";
    peer.since = "1970-01-01T00:00:01.000Z";
    peer.messages_in = 5;
    out.peers.push_back(peer);
    return out;
}
} // namespace

TEST_CASE("rates are the difference of two answers")
{
    const auto before = sample();
    auto now = sample();
    now.time_ms += 2'000;
    now.events += 300;
    now.commits += 4;
    now.commit_us += 8'000;
    now.cpu_us += 100'000;
    now.services[0].took_us += 9'000;
    now.services[0].results = {{"not_found", 2}, {"ok", 3}};
    now.services[0].latency = {{1, 3}, {0, 5}};
    now.peers[0].messages_in += 50;
    schema::PeerStats quiet;
    quiet.caller = "operator:uid=1:pid=2";
    quiet.behind = 1;
    now.peers.push_back(quiet);
    const BusTop top = compare(before, now);
    CHECK(top.interval_ms == 2'000);
    CHECK(top.events == 150);
    CHECK(top.mean_commit_ms == 2);
    CHECK(top.cpu_percent == 5);
    REQUIRE(top.services.size() == 1);
    CHECK(top.services[0].ended == 3);
    CHECK(top.services[0].failed == 1);
    CHECK(top.services[0].commands == 1.5);
    CHECK(top.services[0].mean_ms == 3);
    CHECK(top.commands == 1.5);
    REQUIRE(top.peers.size() == 2);
    CHECK(top.peers[0].now.caller == "operator:uid=1:pid=2"); // it lags: first
    CHECK(top.peers[1].in == 25);
    const auto json = nlohmann::json::parse(top_json(top));
    CHECK(json["rates"]["events"] == 150.0);
    CHECK(json["services"][0]["failed"] == 1);
    CHECK(json["peers"][0]["behind"] == 1);
}

TEST_CASE("a broker that restarted counts from zero")
{
    const auto before = sample();
    auto now = sample();
    now.started_ms = 11'000;
    now.time_ms = 12'000;
    now.events = 20;
    const BusTop top = compare(before, now);
    CHECK(top.interval_ms == 1'000);
    CHECK(top.events == 20);
    CHECK(top.services[0].ended == 2);
}

TEST_CASE("top fits the terminal")
{
    auto now = sample();
    now.peers[0].last_seen = "1970-01-01T00:00:10.000Z";
    for (int i = 0; i < 40; ++i) { now.peers.push_back(now.peers[0]); }
    const BusTop top = compare(sample(), now);
    for (const std::size_t rows : {12U, 15U, 24U, 49U, 50U, 51U, 80U})
    {
        const std::string text = top_text(top, rows);
        CAPTURE(rows, text);
        CHECK(static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n')) <= rows);
        CHECK((text.find(" more\n") == std::string::npos) == (rows >= 51));
    }
    auto silent = sample();
    silent.peers[0].caller = "somebody";
    silent.peers[0].last_seen = "1970-01-01T00:00:04.999Z";
    CHECK(top_text(compare(sample(), silent), 0).find("somebody") == std::string::npos);
    silent.peers[0].calls = 1;
    CHECK(top_text(compare(sample(), silent), 0).find("somebody") != std::string::npos);
    schema::BusStats::Reply hostile = sample();
    hostile.peers[0].last_seen = "1970-01-01T00:00:10.000Z";
    hostile.peers[0].caller = "\x1b[2J";
    CHECK(top_text(compare(sample(), hostile), 0).find('\x1b') == std::string::npos);
}
