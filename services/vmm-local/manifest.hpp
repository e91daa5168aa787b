#pragma once
#include "shared/base/result.hpp"
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::vmm
{

/// One host port that leads into the guest, as the manifest keeps it.
struct PortMap
{
    std::string address;  ///< on the host
    std::string protocol; ///< tcp or udp
    std::uint16_t from = 0; ///< host port
    std::uint16_t to = 0;   ///< guest port
    friend bool operator==(const PortMap&, const PortMap&) = default;
};
/// "tcp 127.0.0.1:8080", as upstream's error texts name a mapping.
std::string to_string(const PortMap& map);
/// True when both cannot be bound at the same time (an unspecified address overlaps every other).
bool overlaps(const PortMap& a, const PortMap& b);

/// vm-manifest.json (B.13): what the VM is. Written once, replaced as a whole.
struct Manifest
{
    std::string id;
    std::string name;
    std::string app_id;
    std::uint32_t vcpu = 0;
    std::uint32_t memory = 0;    ///< MiB
    std::uint32_t disk_size = 0; ///< GiB
    std::string image;
    std::vector<PortMap> port_map;
    std::uint64_t created_at_ms = 0;
    bool hugepages = false;
    bool pin_numa = false;
    std::vector<std::string> kms_urls;
    std::vector<std::string> gateway_urls;
    bool no_tee = false;
    std::optional<std::string> simulated_tee;
    std::uint32_t cid = 0; ///< ours: the leased CID, 0 when there is none
    friend bool operator==(const Manifest&, const Manifest&) = default;
};
std::string encode(const Manifest& manifest);
Result<Manifest> decode_manifest(std::string_view text);

/// One entry of the ring that GetInfo shows (B.9).
struct GuestEvent
{
    std::string event;
    std::string body;
    std::uint64_t timestamp = 0; ///< unix ms
    friend bool operator==(const GuestEvent&, const GuestEvent&) = default;
};

/// vm-state.json: `started` is upstream's and the wish; the rest is what happened, kept so that a restart of the VMM
/// forgets nothing. Absent file: the default.
struct State
{
    bool started = false;
    std::string boot_progress;
    std::string boot_error;
    std::string shutdown_progress;
    std::string stop_asked;           ///< "", "stop" or "shutdown": why the process is expected to end
    std::uint64_t started_at_ms = 0;  ///< of the last start of QEMU; 0: never
    std::uint64_t exited_at_ms = 0;   ///< 0: never
    std::string exit_reason;
    std::uint16_t host_api_port = 0;  ///< kept over restarts: the guest knows it
    std::string host_api_token;       ///< what only this guest knows
    std::string accel;                ///< of the last start
    bool ready = false;               ///< `done` was reported since the last start
    std::vector<GuestEvent> events;
    friend bool operator==(const State&, const State&) = default;
};
std::string encode(const State& state);
Result<State> decode_state(std::string_view text);

constexpr std::size_t max_guest_events = 20;

/// 1 to 64 characters of [A-Za-z0-9_-]: what may become a path (B.2).
bool valid_vm_id(std::string_view id);
/// Random version 4, lower-case.
std::string make_uuid();

} // namespace dstack::vmm
