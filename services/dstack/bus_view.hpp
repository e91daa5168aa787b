#pragma once
#include "bus/schema/bus.hpp"
#include "bus/schema/bus_stats.hpp"
#include <cstdint>
#include <string>
#include <vector>

namespace dstack::cli
{

/// The bus between two answers of bus.stats: what `dstack bus top` shows. Rates are per second.
struct BusTop
{
    struct Service
    {
        schema::ServiceStats now;
        double commands = 0;
        std::uint64_t ended = 0;   ///< commands in the interval
        std::uint64_t failed = 0;  ///< of these, not ok
        double mean_ms = 0;        ///< of these
    };
    struct Peer
    {
        schema::PeerStats now;
        double in = 0;
        double out = 0;
        double bytes_in = 0;
        double bytes_out = 0;
    };
    schema::BusStats::Reply now; ///< without services and peers
    std::uint64_t interval_ms = 0;
    double events = 0;
    double commands = 0;
    double messages_in = 0;
    double messages_out = 0;
    double bytes_in = 0;
    double bytes_out = 0;
    double cpu_percent = 0;
    double mean_commit_ms = 0;
    std::vector<Service> services; ///< by name
    std::vector<Peer> peers;       ///< those that lag or lost messages first, then by traffic
};
/// A broker that restarted in between counts from zero: then the rates are of what it has counted since.
BusTop compare(const schema::BusStats::Reply& before, schema::BusStats::Reply now);

/// At most `rows` lines; 0: all.
std::string top_text(const BusTop& top, std::size_t rows);
std::string top_json(const BusTop& top);

std::string bus_services_text(const schema::BusServices::Reply& reply, std::uint64_t now_ms);
std::string bus_services_json(const schema::BusServices::Reply& reply);

} // namespace dstack::cli
