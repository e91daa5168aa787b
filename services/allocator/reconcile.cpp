#include "services/allocator/reconcile.hpp"
#include <algorithm>
#include <charconv>
#include <set>

namespace dstack::allocator
{

namespace
{

constexpr std::uint64_t grace_ms = 10'000; ///< a VM that starts has not bound all of its ports yet

/// What each owner has, by owner.
struct Holding
{
    std::set<std::uint32_t> cids{};
    std::vector<const Resource*> ports{};
};
using Holdings = std::map<std::string, Holding, std::less<>>;

Holdings holdings_of(const std::vector<Watched>& leases)
{
    Holdings out;
    for (const Watched& one : leases)
    {
        if (one.resource.kind == Kind::cid) { out[one.owner].cids.insert(one.resource.value); }
        if (one.resource.kind == Kind::port) { out[one.owner].ports.push_back(&one.resource); }
    }
    return out;
}

bool forwards_any(const Process& process, const Holding& holding)
{
    return std::any_of(process.forwards.begin(), process.forwards.end(),
                       [&](const Resource& forward)
                       { return std::any_of(holding.ports.begin(), holding.ports.end(), [&](const Resource* port) { return port->conflicts(forward); }); });
}

bool has_cid_of(const Process& process, const Holding& holding)
{
    return std::any_of(process.cids.begin(), process.cids.end(), [&](std::uint32_t cid) { return holding.cids.contains(cid); });
}

bool is_vm_of(const Process& process, const Holding& holding)
{
    if (process.cids.empty()) { return forwards_any(process, holding); }
    if (!has_cid_of(process, holding)) { return holding.cids.empty() && forwards_any(process, holding); }
    return process.forwards.empty() || holding.ports.empty() || forwards_any(process, holding);
}

std::string verb_of(const Use& use) { return use.why == "listens" ? "listens there" : "has it: " + use.why; }

std::optional<std::uint32_t> number_in(std::string_view text)
{
    std::uint32_t value = 0;
    const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (failed != std::errc{} || end != text.data() + text.size() || text.empty()) { return std::nullopt; }
    return value;
}

} // namespace

std::string Finding::key() const { return (trouble == Trouble::conflict ? "conflict " : "drift ") + lease + " " + std::to_string(process.pid); }

std::vector<Finding> compare(const std::vector<Watched>& leases, const std::vector<Use>& uses, std::uint64_t now_ms)
{
    const Holdings holdings = holdings_of(leases);
    std::map<std::pair<Kind, std::uint32_t>, std::vector<const Use*>> at;
    std::vector<const Use*> pools;
    std::map<long, const Process*> vms;
    for (const Use& use : uses)
    {
        if (use.last > use.resource.value) { pools.push_back(&use); }
        else { at[{use.resource.kind, use.resource.value}].push_back(&use); }
        if (use.process.pid != 0 && (!use.process.cids.empty() || !use.process.forwards.empty())) { vms.emplace(use.process.pid, &use.process); }
    }
    std::map<std::string_view, const Process*> vm_of; // by owner
    for (const auto& [owner, holding] : holdings)
    {
        for (const auto& [pid, process] : vms)
        {
            if (is_vm_of(*process, holding)) { vm_of.emplace(owner, process); }
        }
    }
    std::vector<Finding> out;
    for (const Watched& lease : leases)
    {
        if (!lease.by_service) { continue; }
        const Holding& holding = holdings.find(lease.owner) != holdings.end() ? holdings.find(lease.owner)->second : Holding{};
        bool used = false;
        const auto check = [&](const Use& use)
        {
            if (!use.in_the_way_of(lease.resource)) { return; }
            used = true;
            if (use.process.pid == 0 || is_vm_of(use.process, holding)) { return; } // one that cannot be seen is not accused
            out.push_back({Trouble::conflict, lease.id, use.process,
                           lease.resource.text() + " is leased to " + lease.owner + ", but " + use.process.text() + " " + verb_of(use)});
        };
        const auto found = at.find({lease.resource.kind, lease.resource.value});
        if (found != at.end())
        {
            for (const Use* use : found->second) { check(*use); }
        }
        for (const Use* use : pools) { check(*use); }
        const auto vm = vm_of.find(lease.owner);
        const bool settled = lease.bound && now_ms >= lease.since_ms + grace_ms;
        if (!used && settled && lease.resource.kind == Kind::port && vm != vm_of.end())
        {
            out.push_back({Trouble::drift, lease.id, *vm->second,
                           "the VM of " + lease.owner + " runs (" + vm->second->text() + "), but nothing listens at " + lease.resource.text()});
        }
    }
    return out;
}

Process process_of(const std::string& owner, const std::vector<Watched>& leases, const std::vector<Use>& uses)
{
    const Holdings holdings = holdings_of(leases);
    const auto holding = holdings.find(owner);
    for (const Use& use : uses)
    {
        if (use.process.pid == 0) { continue; }
        if (holding != holdings.end() && is_vm_of(use.process, holding->second)) { return use.process; }
        if (use.last > use.resource.value) { continue; } // a pool is not the owner's
        const bool uses_it = std::any_of(leases.begin(), leases.end(), [&](const Watched& one) { return one.owner == owner && !one.by_service && use.in_the_way_of(one.resource); });
        if (uses_it) { return use.process; }
    }
    return {};
}

Result<std::vector<Resource>> parse_question(std::string_view text)
{
    const Error bad{Errc::invalid_argument, "'" + std::string{text.substr(0, 100)} + "': not understood",
                    "expected 8080, tcp:8080, udp:127.0.0.1:53, tcp:[::1]:80, cid:1003 or vsock:10000", {}};
    for (const auto& [word, kind] : {std::pair{"cid:", Kind::cid}, std::pair{"vsock:", Kind::vsock_port}})
    {
        if (!text.starts_with(word)) { continue; }
        const auto value = number_in(text.substr(std::string_view{word}.size()));
        if (!value) { return bad; }
        return std::vector{Resource{kind, {}, {}, *value}};
    }
    std::vector<std::string> protocols{"tcp", "udp"};
    for (const char* protocol : {"tcp", "udp"})
    {
        if (!text.starts_with(std::string{protocol} + ":")) { continue; }
        protocols = {protocol};
        text.remove_prefix(4);
        break;
    }
    std::vector<Address> addresses;
    const auto colon = text.rfind(':');
    if (colon != std::string_view::npos)
    {
        std::string_view host = text.substr(0, colon);
        if (host.size() > 2 && host.front() == '[' && host.back() == ']') { host = host.substr(1, host.size() - 2); }
        const auto address = Address::parse(host);
        if (!address) { return bad; }
        addresses.push_back(*address);
        text.remove_prefix(colon + 1);
    }
    else { addresses = {*Address::parse("0.0.0.0"), *Address::parse("::")}; }
    const auto value = number_in(text);
    if (!value || *value == 0 || *value > 65535) { return bad; }
    std::vector<Resource> out;
    for (const std::string& protocol : protocols)
    {
        for (const Address& address : addresses) { out.push_back({Kind::port, protocol, address, *value}); }
    }
    return out;
}

} // namespace dstack::allocator
