#include "services/auth/standalone.hpp"
#include <algorithm>
#include <charconv>

namespace dstack::auth
{

namespace
{

/// "127.0.0.1:8001", "[::1]:8001".
bool split_address(std::string_view text, Config& out)
{
    const auto colon = text.rfind(':');
    if (colon == std::string_view::npos || colon == 0) { return false; }
    std::string_view host = text.substr(0, colon);
    const std::string_view port = text.substr(colon + 1);
    if (host.starts_with('[') && host.ends_with(']')) { host = host.substr(1, host.size() - 2); }
    else if (host.find(':') != std::string_view::npos) { return false; }
    const auto [end, failed] = std::from_chars(port.data(), port.data() + port.size(), out.port);
    if (failed != std::errc{} || end != port.data() + port.size() || host.empty()) { return false; }
    out.listen = host;
    return true;
}

Plan wrong(std::string why)
{
    Plan out;
    out.kind = Plan::Kind::wrong;
    out.error = std::move(why);
    return out;
}

} // namespace

Plan plan_of(const std::vector<std::string_view>& arguments)
{
    Plan out;
    const auto has = [&](std::string_view flag)
    { return std::find(arguments.begin(), arguments.end(), flag) != arguments.end(); };
    const bool standalone = has("--standalone");
    if (!standalone && !has("--check-policy")) { return out; }
    if (has("--help") || has("-h") || has("--version")) { return out; }
    out.kind = standalone ? Plan::Kind::standalone : Plan::Kind::check_policy;
    bool listens = false;
    for (std::size_t i = 0; i < arguments.size(); ++i)
    {
        const std::string_view flag = arguments[i];
        if (flag == "--standalone") { continue; }
        if (flag == "--debug") { out.debug = true; }
        else if (flag == "--json" && !standalone) { out.json = true; }
        else
        {
            const bool known = standalone ? flag == "--policy" || flag == "--listen" || flag == "--ledger" : flag == "--check-policy";
            if (!known) { return wrong("unknown argument '" + std::string{flag} + "'"); }
            if (i + 1 == arguments.size()) { return wrong(std::string{flag} + " needs a value"); }
            const std::string_view value = arguments[++i];
            if (value.empty()) { return wrong(std::string{flag} + " needs a value"); }
            if (flag == "--policy") { out.config.policy_file = value; }
            else if (flag == "--check-policy") { out.policy_file = value; }
            else if (flag == "--ledger") { out.config.ledger_dir = value; }
            else if (!split_address(value, out.config))
            {
                return wrong("--listen: must be ADDRESS:PORT, such as 127.0.0.1:8001 or [::1]:8001");
            }
            else { listens = true; }
        }
    }
    if (!standalone) { return out; }
    if (out.config.policy_file.empty()) { return wrong("--standalone needs --policy FILE"); }
    if (!listens) { return wrong("--standalone needs --listen ADDRESS:PORT"); }
    return out;
}

} // namespace dstack::auth
