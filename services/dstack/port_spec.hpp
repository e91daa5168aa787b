#pragma once
#include "bus/schema/deploy.hpp"
#include "shared/base/result.hpp"
#include <string_view>
#include <vector>

namespace dstack::cli
{

/// `vm | host:vm | proto:host:vm | proto:addr:host:vm`; the host port may be `auto`, `0` or empty: any free one. An IPv6
/// address is written in brackets: `tcp:[::1]:8080:80`. What is left out is tcp and 127.0.0.1.
Result<schema::PortMapping> parse_port_spec(std::string_view text);

/// The same, where both ports may be ranges of the same length, `8000-8010:8000-8010`, or the guest's one and `auto` ones of
/// the host. At most 256 ports.
Result<std::vector<schema::PortMapping>> parse_port_specs(std::string_view text);

} // namespace dstack::cli
