#pragma once
#include "shared/base/result.hpp"
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace dstack::logs
{

struct Config
{
    std::string socket;                 ///< unix socket of the HTTP logs API; with `listen` empty it is the only way in
    std::string listen;                 ///< an IP address as well; "": none
    std::uint16_t port = 0;             ///< 0: any free one; the log says which
    std::string store_dir;              ///< this service's own: the segments
    std::string vm_root;                ///< holds VM-ID/serial.log; no file outside of it is read for a VM
    std::string service_log_dir;        ///< holds SERVICE.log; "": no service's log is collected
    std::uint64_t source_bytes = 64ULL << 20U;      ///< kept per VM or service
    std::uint64_t total_bytes = 1024ULL << 20U;     ///< kept in all; removed VMs go first
    std::uint64_t flood_bytes = 16ULL << 20U;       ///< a source further behind than this is skipped ahead
    std::string events_listen;          ///< [events] listen: an IP address for GET /events with a token; "": none
    std::uint16_t events_port = 8010;   ///< 0: any free one; the log says which
    std::string events_token_file;      ///< default: STORE_DIR/events.token; made when it is not there
    std::chrono::milliseconds events_heartbeat{15'000}; ///< a comment after this long without an event
    std::chrono::milliseconds events_stall{30'000};     ///< a client that takes nothing for this long is disconnected
    std::string bus_directory;          ///< "": without the mesh, only `vm_root` is watched
};

Result<Config> parse_config(std::string_view toml);

} // namespace dstack::logs
