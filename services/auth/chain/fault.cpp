#include "services/auth/chain/fault.hpp"

namespace dstack::auth::chain
{

std::string_view to_string(Fault fault)
{
    switch (fault)
    {
    case Fault::rate_limited:
        return "rpc_rate_limited";
    case Fault::server_error:
        return "rpc_server_error";
    case Fault::refused:
        return "rpc_refused";
    case Fault::redirected:
        return "rpc_redirected";
    case Fault::unreachable:
        return "rpc_unreachable";
    case Fault::tls:
        return "rpc_tls";
    case Fault::timeout:
        return "rpc_timeout";
    case Fault::slow:
        return "rpc_slow";
    case Fault::too_large:
        return "rpc_too_large";
    case Fault::malformed:
        return "rpc_malformed";
    case Fault::rpc_error:
        return "rpc_error";
    case Fault::no_contract:
        return "rpc_no_contract";
    case Fault::stale:
        return "rpc_stale";
    case Fault::wrong_chain:
        return "rpc_wrong_chain";
    }
    return "rpc_malformed";
}

std::string plain(std::string_view text, std::size_t limit)
{
    std::string out;
    for (const char c : text.substr(0, limit)) { out += c >= 0x20 && c < 0x7f && c != '"' && c != '\\' ? c : '?'; }
    if (text.size() > limit) { out += "..."; }
    return out;
}

} // namespace dstack::auth::chain
