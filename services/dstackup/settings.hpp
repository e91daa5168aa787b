#pragma once
#include "services/dstackup/layout.hpp"
#include "shared/base/result.hpp"
#include <cstdint>
#include <string>
#include <string_view>

namespace dstack::up
{

/// What `dev up` decided and the supervisor is told: PREFIX/etc/dstack/dev.toml.
struct Settings
{
    std::string prefix{};
    std::string program{}; ///< our own executable; the mesh's programs are looked for around it
    std::uint16_t auth_port = 8001;
    std::uint16_t vmm_port = 9080;
    std::uint16_t kms_port = 8443;
    std::string leases{}; ///< the lease database; empty: the host-wide one (from DSTACK_LEASES, for tests and trials)
};

std::string to_toml(const Settings& settings);
Result<Settings> parse_settings(std::string_view toml);

/// A TOML string in double quotes.
std::string toml_quote(std::string_view text);

} // namespace dstack::up
