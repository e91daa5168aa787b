#pragma once
#include "shared/base/result.hpp"
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::auth::chain
{

inline constexpr std::size_t max_endpoints = 16;

/// One RPC URL in its parts. Everything but `label` may hold a secret.
struct Endpoint
{
    bool tls = false;
    std::string host;          ///< without the brackets of [::1]
    std::string authority;     ///< host or host:port, as the Host field has it
    std::uint16_t port = 0;
    std::string target;        ///< path and query: "/v3/<key>"
    std::string authorization; ///< "Basic ..." when the URL had user:password@
    std::string label;         ///< for reasons, logs and metrics: "host", "host:port", or with "#2" when that is not unique
};

/// http:// only to this host, unless `plain_http`: whoever is on the way could release keys. The message of an error
/// names the place in the list ("the 2nd of rpc_urls: ..."), and nothing of the URL.
Result<std::vector<Endpoint>> parse_endpoints(std::span<const std::string> urls, bool plain_http);

/// One URL a line; blanks around it, empty lines and lines that begin with '#' do not count.
std::vector<std::string> lines_of(std::string_view text);

/// The URL to one address of the endpoint's host: "https://192.0.2.1:443/v3/<key>".
std::string url_at(const Endpoint& endpoint, std::string_view address);

} // namespace dstack::auth::chain
