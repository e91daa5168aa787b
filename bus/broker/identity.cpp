#include "bus/broker/identity.hpp"
#include "bus/broker/tokens.hpp"
#include "bus/protocol/frames.hpp"
#include "bus/schema/catalog.hpp"
#include <algorithm>
#include <array>
#include <grp.h>
#include <pwd.h>
#include <unistd.h>

namespace dstack::bus
{

namespace
{

std::vector<std::string_view> split(std::string_view text, char separator)
{
    std::vector<std::string_view> parts;
    for (;;)
    {
        const auto end = text.find(separator);
        parts.push_back(text.substr(0, end));
        if (end == std::string_view::npos) { return parts; }
        text.remove_prefix(end + 1);
    }
}

bool number_u32(std::string_view text, std::uint32_t& out)
{
    const auto value = wire::number(text);
    if (!value || *value > UINT32_MAX) { return false; }
    out = static_cast<std::uint32_t>(*value);
    return true;
}

bool in_group(const PeerFacts& facts, const std::string& group)
{
    return !group.empty() && std::find(facts.groups.begin(), facts.groups.end(), group) != facts.groups.end();
}

} // namespace

std::string Identity::user_id() const
{
    if (!token.empty()) { return "token:" + token + ':' + address; }
    return std::to_string(uid) + ':' + std::to_string(gid) + ':' + std::to_string(pid) + ':' +
           std::string{schema::to_string(role)} + ':' + service;
}

Result<Identity> Identity::from_user_id(std::string_view text)
{
    Identity out;
    if (text.starts_with("token:"))
    {
        text.remove_prefix(6);
        const auto colon = text.find(':');
        if (colon != 16) { return Error{Errc::internal, "a message without an attested sender", {}, {}}; }
        out.token = text.substr(0, colon);
        out.address = text.substr(colon + 1);
        return out;
    }
    const auto parts = split(text, ':');
    if (parts.size() != 5 || !number_u32(parts[0], out.uid) || !number_u32(parts[1], out.gid) ||
        !number_u32(parts[2], out.pid))
    {
        return Error{Errc::internal, "a message without an attested sender", {}, {}};
    }
    out.role = role_from(parts[3]);
    out.service = parts[4];
    return out;
}

std::string Identity::caller() const
{
    if (!service.empty()) { return service; }
    if (!token.empty()) { return std::string{schema::to_string(role)} + ":token=" + token_name + ":ip=" + address; }
    return std::string{schema::to_string(role)} + ":uid=" + std::to_string(uid) + ":pid=" + std::to_string(pid);
}

std::string Identity::scope() const
{
    if (!service.empty()) { return service; }
    return token.empty() ? "uid:" + std::to_string(uid) : "token:" + token;
}

Result<PeerFacts> parse_zap_address(std::string_view address)
{
    const auto parts = split(address, ':');
    PeerFacts facts;
    if (parts.size() != 4 || parts[0] != "localhost" || !number_u32(parts[1], facts.uid) ||
        !number_u32(parts[2], facts.gid) || !number_u32(parts[3], facts.pid))
    {
        return Error{Errc::unauthenticated, "the peer's credentials are not known to the kernel", {}, {}};
    }
    return facts;
}

void look_up(PeerFacts& facts)
{
    facts.same_user_as_broker = facts.uid == ::geteuid();
    std::array<char, 4096> path{};
    const std::string link = "/proc/" + std::to_string(facts.pid) + "/exe";
    const ssize_t length = ::readlink(link.c_str(), path.data(), path.size());
    if (length > 0) { facts.exe.assign(path.data(), static_cast<std::size_t>(length)); }

    std::array<char, 16384> buffer{};
    passwd entry{};
    passwd* found = nullptr;
    if (::getpwuid_r(facts.uid, &entry, buffer.data(), buffer.size(), &found) != 0 || found == nullptr) { return; }
    facts.user = entry.pw_name;
    std::array<gid_t, 256> groups{};
    int count = static_cast<int>(groups.size());
    if (::getgrouplist(entry.pw_name, entry.pw_gid, groups.data(), &count) < 0) { return; }
    for (int i = 0; i < count; ++i)
    {
        group group_entry{};
        group* group_found = nullptr;
        std::array<char, 65536> group_buffer{};
        if (::getgrgid_r(groups[static_cast<std::size_t>(i)], &group_entry, group_buffer.data(), group_buffer.size(),
                         &group_found) == 0 &&
            group_found != nullptr)
        {
            facts.groups.emplace_back(group_entry.gr_name);
        }
    }
}

Result<Identity> identify(const PeerFacts& facts, const IdentityRules& rules)
{
    Identity out{facts.uid, facts.gid, facts.pid, schema::Role::none, {}};
    for (const auto& [service, rule] : rules.services)
    {
        const bool by_user = rule.starts_with("user:") && !facts.user.empty() && rule.substr(5) == facts.user;
        const bool by_exe = rule.starts_with("exe:") && facts.same_user_as_broker && !facts.exe.empty() && rule.substr(4) == facts.exe;
        if (by_user || by_exe)
        {
            out.service = service;
            return out;
        }
    }
    if (facts.uid == 0 || facts.same_user_as_broker || in_group(facts, rules.admin_group)) { out.role = schema::Role::admin; }
    else if (in_group(facts, rules.operator_group)) { out.role = schema::Role::operator_; }
    else if (in_group(facts, rules.viewer_group)) { out.role = schema::Role::viewer; }
    else
    {
        return Error{Errc::permission_denied,
                     "user " + (facts.user.empty() ? std::to_string(facts.uid) : facts.user) + " is neither a service nor in group " +
                         rules.operator_group,
                     "add the user to the group: usermod -aG " + rules.operator_group + " USER, then log in again",
                     {}};
    }
    return out;
}

Result<Done> may_send(const Identity& identity, const schema::CommandType& command)
{
    if (!identity.service.empty())
    {
        if (schema::service_may_send(command, identity.service) || (command.target == "bus" && command.role == schema::Role::viewer))
        {
            return Done{};
        }
        return Error{Errc::permission_denied,
                     "service " + identity.service + " may not send " + std::string{command.name},
                     "the schema names the services that may", {}};
    }
    if (command.role != schema::Role::none && identity.role >= command.role) { return Done{}; }
    return Error{Errc::permission_denied,
                 std::string{command.name} + " needs the role " +
                     (command.role == schema::Role::none ? "of a service" : std::string{schema::to_string(command.role)}) +
                     ", and you are " + std::string{schema::to_string(identity.role)},
                 "ask an administrator of this host", {}};
}

Result<Done> may_publish(const Identity& identity, const schema::EventType& event)
{
    if (!identity.service.empty() && identity.service == event.emitter) { return Done{}; }
    return Error{Errc::permission_denied,
                 "only " + std::string{event.emitter} + " may publish " + std::string{event.name} + ", and this is " + identity.caller(),
                 {}, {}};
}

} // namespace dstack::bus
