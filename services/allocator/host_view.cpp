#include "services/allocator/host_view.hpp"
#include <algorithm>
#include <ctime>
#include <set>

namespace dstack::allocator
{

namespace
{
std::uint64_t clock_us(clockid_t clock)
{
    timespec now{};
    ::clock_gettime(clock, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000 + static_cast<std::uint64_t>(now.tv_nsec) / 1000;
}

Resource resource_of(const schema::Lease& lease)
{
    return {kind_of(lease.kind).value_or(Kind::port), lease.protocol, Address::parse(lease.address), lease.value};
}

void add_once(std::vector<std::string>& reasons, std::string reason)
{
    if (std::find(reasons.begin(), reasons.end(), reason) == reasons.end()) { reasons.push_back(std::move(reason)); }
}

std::string sentence(const schema::Lease& lease)
{
    std::string out = resource_of(lease).text() + " is leased to " + lease.owner;
    if (!lease.install.empty()) { out += " of the install in " + lease.install; }
    if (!lease.purpose.empty()) { out += " (" + lease.purpose + ")"; }
    return out + ", " + lease.state + " since " + lease.since + (lease.expires.empty() ? "" : ", until " + lease.expires + " unless it is bound") + ", " + lease.id;
}

std::string sentence(const Use& use)
{
    Resource first = use.resource;
    std::string what = first.text();
    if (use.last > first.value) { what += "-" + std::to_string(use.last); }
    return what + ": " + (use.process.pid == 0 && use.why != "listens" ? use.why : use.process.text() + (use.why == "listens" ? " listens" : ": " + use.why));
}
} // namespace

Looked look_at(Eyes& eyes)
{
    const std::lock_guard lock{eyes.mutex};
    const std::uint64_t begun = clock_us(CLOCK_MONOTONIC);
    const std::uint64_t begun_cpu = clock_us(CLOCK_THREAD_CPUTIME_ID);
    Looked out{eyes.looker.all()};
    out.took_us = clock_us(CLOCK_MONOTONIC) - begun;
    out.cpu_us = clock_us(CLOCK_THREAD_CPUTIME_ID) - begun_cpu;
    return out;
}

schema::HostUse use_on_bus(const Use& use)
{
    schema::HostUse out;
    out.kind = to_string(use.resource.kind);
    out.protocol = use.resource.protocol;
    if (use.resource.address) { out.address = use.resource.address->text(); }
    out.value = use.resource.value;
    out.last = use.last > use.resource.value ? use.last : 0;
    out.pid = static_cast<std::uint64_t>(use.process.pid);
    out.process = use.process.name;
    out.unit = use.process.unit;
    out.command = use.process.command;
    out.why = use.why;
    return out;
}

std::vector<schema::HostUse> uses_on_bus(const std::vector<Use>& uses, const std::vector<Watched>& leases)
{
    std::map<std::pair<Kind, std::uint32_t>, std::vector<const Watched*>> by_value;
    for (const Watched& one : leases) { by_value[{one.resource.kind, one.resource.value}].push_back(&one); }
    std::vector<schema::HostUse> out;
    for (const Use& use : uses)
    {
        out.push_back(use_on_bus(use));
        const auto at = by_value.find({use.resource.kind, use.resource.value});
        if (at == by_value.end() || use.last > use.resource.value) { continue; }
        for (const Watched* lease : at->second)
        {
            if (!use.in_the_way_of(lease->resource)) { continue; }
            out.back().lease = lease->id;
            out.back().owner = lease->owner;
            break;
        }
    }
    return out;
}

schema::LeaseExplain::Reply explain(const std::vector<Resource>& wanted, const std::vector<schema::Lease>& leases, Eyes& eyes)
{
    const Looked looked = look_at(eyes);
    const std::lock_guard lock{eyes.mutex};
    schema::LeaseExplain::Reply out;
    out.free = true;
    eyes.kernel.begin();
    const auto in_the_way = [&](const auto& test) { return std::any_of(wanted.begin(), wanted.end(), test); };
    for (const schema::Lease& lease : leases)
    {
        if (!in_the_way([&](const Resource& one) { return one.conflicts(resource_of(lease)); })) { continue; }
        out.leases.push_back(lease);
        add_once(out.reasons, sentence(lease));
    }
    for (const Use& use : looked.uses)
    {
        if (!in_the_way([&](const Resource& one) { return use.in_the_way_of(one); })) { continue; }
        out.uses.push_back(use_on_bus(use));
        add_once(out.reasons, sentence(use));
    }
    out.free = out.reasons.empty();
    for (const Resource& one : wanted)
    {
        out.what += (out.what.empty() ? "" : ", ") + one.text();
        if (out.free)
        {
            auto holder = eyes.kernel.holder(one);
            const bool no_such_family = !holder && wanted.size() > 1;
            if (no_such_family || (holder && !*holder)) { continue; }
            add_once(out.reasons, holder ? one.text() + " is taken: " + **holder : holder.error().message);
        }
    }
    out.free = out.reasons.empty();
    if (wanted.front().kind == Kind::port)
    {
        const auto port = static_cast<std::uint16_t>(wanted.front().value);
        if (eyes.kernel.is_privileged(port)) { add_once(out.reasons, "a privileged port: it is granted with --privileged-ports only"); }
        if (eyes.kernel.is_ephemeral(port)) { add_once(out.reasons, "in ip_local_port_range: `auto` does not choose it, for outgoing connections may take it at any time"); }
        if (eyes.kernel.is_set_aside(port)) { add_once(out.reasons, "in ip_local_reserved_ports: it is granted by name only"); }
    }
    if (out.free) { out.reasons.insert(out.reasons.begin(), "nobody has it"); }
    return out;
}

} // namespace dstack::allocator
