#pragma once
#include "shared/base/result.hpp"
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::kms
{

struct Config
{
    std::string listen = "127.0.0.1";
    std::uint16_t port = 8443;                      ///< 0: any free one; the log says which
    std::string state_dir;                          ///< root keys and the recorded identity; created with mode 0700
    std::string auth_url = "http://127.0.0.1:8001"; ///< the authorization webhook; GetMeta asks exactly this URL
    std::chrono::milliseconds auth_timeout{10'000}; ///< of one request to it; upstream has none
    std::string
        tee_host_key_file; ///< hex of the key by which the embedded VMM's statements are known; see shared/attestation
    std::vector<std::string> dns_names{"localhost"}; ///< of the RPC certificate
    std::vector<std::string> ip_addresses{"127.0.0.1",
                                          "10.0.2.2"}; ///< 10.0.2.2: the host as QEMU's user network shows it
    std::chrono::milliseconds request_timeout{30'000}; ///< guests give up after 60 s
    std::string bus_directory;                         ///< empty: without the mesh
};

/// [kms] listen port state_dir auth_url auth_timeout_ms tee_host_key_file dns_names ip_addresses request_timeout_ms;
/// [bus] directory.
Result<Config> parse_config(std::string_view toml);

} // namespace dstack::kms
