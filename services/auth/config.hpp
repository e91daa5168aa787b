#pragma once
#include "services/auth/chain/settings.hpp"
#include "shared/base/result.hpp"
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace dstack::auth
{

struct Config
{
    std::string listen = "127.0.0.1";
    std::uint16_t port = 8001;  ///< 0: any free one; the log says which
    std::string policy_file;    ///< auth-simple's and upstream dstack-auth's document; see policy.hpp. Backend file only
    bool create_policy = false; ///< development: write a policy that allows nothing when there is none
    std::string ledger_dir;     ///< created when missing; empty: no ledger (--standalone only)
    std::chrono::milliseconds ledger_flush{0}; ///< 0 ("each"): on disk before the answer; else flushed so often
    std::uint64_t ledger_segment_kib = 65536;  ///< a file of the ledger that has grown so large is closed
    std::chrono::milliseconds idle_timeout{75'000};
    std::chrono::milliseconds request_timeout{10'000}; ///< from the first byte of a request to its answer
    std::string bus_directory;                         ///< empty: without the mesh
    std::string backend = "file"; ///< who decides: file (the policy file), chain (a contract)
    chain::Settings chain{};      ///< for backend chain
};

Result<Config> parse_config(std::string_view toml);

} // namespace dstack::auth
