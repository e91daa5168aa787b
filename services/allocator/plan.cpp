#include "services/allocator/plan.hpp"
#include <algorithm>
#include <arpa/inet.h>
#include <netinet/in.h>

namespace dstack::allocator
{

namespace
{

constexpr std::array<std::uint8_t, 12> v4_prefix{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
constexpr std::size_t max_purpose = 200;

Error invalid(std::size_t index, std::string_view member, std::string_view why)
{
    return Error{Errc::invalid_argument,
                 "wishes[" + std::to_string(index) + "]." + std::string{member} + ": " + std::string{why},
                 {},
                 {}};
}

std::string hint_for(Kind kind)
{
    return kind == Kind::port ? "stop what holds it, choose another port, or let a free one be chosen with `auto`"
                              : "choose another CID, or let a free one be chosen";
}

Refusal taken(const Resource& resource, const std::string& by)
{
    return {resource.text(),
            Error{Errc::already_exists, resource.text() + " is taken: " + by, hint_for(resource.kind), {}}};
}

std::string described(const Held& held)
{
    std::string out = "leased to " + held.owner;
    if (!held.purpose.empty()) { out += " (" + held.purpose + ")"; }
    return out;
}

std::uint32_t first_of(const Ranges& ranges, Kind kind)
{
    switch (kind)
    {
    case Kind::cid: return ranges.cid_first;
    case Kind::port: return ranges.port_first;
    case Kind::vsock_port: break;
    }
    return ranges.vsock_first;
}

std::uint32_t last_of(const Ranges& ranges, Kind kind)
{
    switch (kind)
    {
    case Kind::cid: return ranges.cid_last;
    case Kind::port: return ranges.port_last;
    case Kind::vsock_port: break;
    }
    return ranges.vsock_last;
}

std::uint32_t& next_of(Start& start, Kind kind)
{
    switch (kind)
    {
    case Kind::cid: return start.cid;
    case Kind::port: return start.port;
    case Kind::vsock_port: break;
    }
    return start.vsock;
}

/// The next wish on top of what is held; grants are kept too, so that one batch does not take a thing twice.
class Granting
{
  public:
    Granting(Leases& held, HostFacts& host, const Ranges& ranges, Start start)
        : held_(held), host_(host), ranges_(ranges), start_(start)
    {
    }

    using Outcome = Result<std::optional<Refusal>>;

    Outcome grant(const Wish& wish, std::vector<Resource>& granted)
    {
        Resource resource = wish.resource;
        auto refused = resource.value != 0 ? check(resource, wish.privileged) : choose(resource, wish.privileged);
        if (!refused || *refused) { return refused; }
        own_.add({resource, "this reservation", wish.purpose});
        granted.push_back(std::move(resource));
        return refused;
    }

  private:
    Outcome check(const Resource& resource, bool privileged)
    {
        if (const Held* other = own_.find(resource)) { return std::optional{taken(resource, described(*other))}; }
        auto held = held_.conflict(resource);
        if (!held) { return std::move(held).error(); }
        if (*held) { return std::optional{taken(resource, described(**held))}; }
        const bool port = resource.kind == Kind::port;
        if (port && !privileged && host_.is_privileged(static_cast<std::uint16_t>(resource.value)))
        {
            return std::optional{Refusal{resource.text(),
                                         Error{Errc::failed_precondition,
                                               resource.text() + " is a privileged port",
                                               "add --privileged-ports, or choose a port from 1024 on",
                                               {}}}};
        }
        auto holder = host_.holder(resource);
        if (!holder) { return std::optional{Refusal{resource.text(), std::move(holder).error()}}; }
        if (*holder) { return std::optional{taken(resource, **holder)}; }
        return std::optional<Refusal>{};
    }

    bool may_choose(const Resource& resource, bool privileged)
    {
        if (own_.find(resource) != nullptr) { return false; }
        if (resource.kind != Kind::port) { return true; }
        const auto port = static_cast<std::uint16_t>(resource.value);
        return !host_.is_ephemeral(port) && !host_.is_set_aside(port) && (privileged || !host_.is_privileged(port));
    }

    /// From `first` to `last`; true with the value in `resource` when one is free. 64 bits: nothing wraps at 2^32.
    Result<bool> search(Resource& resource, bool privileged, std::uint64_t first, std::uint64_t last)
    {
        for (std::uint64_t next = first; next <= last;)
        {
            auto free = held_.first_free(resource, static_cast<std::uint32_t>(next), static_cast<std::uint32_t>(last));
            if (!free) { return std::move(free).error(); }
            if (!*free) { return false; }
            resource.value = **free;
            next = std::uint64_t{resource.value} + 1;
            if (!may_choose(resource, privileged)) { continue; }
            auto holder = host_.holder(resource);
            if (!holder)
            {
                unusable_ = Refusal{resource.text(), std::move(holder).error()};
                return false;
            }
            if (!*holder) { return true; }
        }
        return false;
    }

    Outcome choose(Resource& resource, bool privileged)
    {
        const std::uint32_t first = first_of(ranges_, resource.kind);
        const std::uint32_t last = last_of(ranges_, resource.kind);
        std::uint32_t& next = next_of(start_, resource.kind);
        if (next < first || next > last) { next = first; }
        const std::uint32_t begin = next;
        auto found = search(resource, privileged, begin, last);
        if (found && !*found && !unusable_ && begin > first)
        {
            found = search(resource, privileged, first, std::uint64_t{begin} - 1);
        }
        if (!found) { return std::move(found).error(); }
        if (unusable_) { return std::exchange(unusable_, {}); }
        if (*found)
        {
            next = resource.value < last ? resource.value + 1 : first;
            return std::optional<Refusal>{};
        }
        resource.value = 0;
        return std::optional{exhausted(resource, first, last)};
    }

    static Refusal exhausted(const Resource& resource, std::uint32_t first, std::uint32_t last)
    {
        const std::string what = resource.kind == Kind::port
                                     ? resource.protocol + " port at " + resource.address->text()
                                     : resource.kind == Kind::cid ? std::string{"cid"} : std::string{"vsock port"};
        return Refusal{
            resource.text(),
            Error{Errc::resource_exhausted,
                  "no free " + what + " in " + std::to_string(first) + "-" + std::to_string(last),
                  "`dstack leases --all` shows who has them; release what is not needed, or widen the range in allocator.toml",
                  {}}};
    }

    Leases& held_;
    HeldList own_{{}};
    HostFacts& host_;
    const Ranges& ranges_;
    Start start_;
    std::optional<Refusal> unusable_;
};

} // namespace

std::string_view to_string(Kind kind)
{
    switch (kind)
    {
    case Kind::cid: return "cid";
    case Kind::port: return "port";
    case Kind::vsock_port: break;
    }
    return "vsock_port";
}

std::optional<Kind> kind_of(std::string_view text)
{
    for (const Kind kind : {Kind::cid, Kind::port, Kind::vsock_port})
    {
        if (text == to_string(kind)) { return kind; }
    }
    return std::nullopt;
}

const Held* HeldList::find(const Resource& resource) const
{
    const auto found =
        std::find_if(held_.begin(), held_.end(), [&](const Held& one) { return one.resource.conflicts(resource); });
    return found != held_.end() ? &*found : nullptr;
}

Result<std::optional<Held>> HeldList::conflict(const Resource& resource)
{
    const Held* found = find(resource);
    return found != nullptr ? std::optional{*found} : std::optional<Held>{};
}

Result<std::optional<std::uint32_t>> HeldList::first_free(const Resource& resource, std::uint32_t first, std::uint32_t last)
{
    Resource candidate = resource;
    for (std::uint64_t value = first; value <= last; ++value)
    {
        candidate.value = static_cast<std::uint32_t>(value);
        if (find(candidate) == nullptr) { return std::optional{candidate.value}; }
    }
    return std::optional<std::uint32_t>{};
}

std::optional<Address> Address::parse(std::string_view text)
{
    const std::string copy{text};
    if (copy.find('\0') != std::string::npos) { return std::nullopt; }
    std::array<std::uint8_t, 4> four{};
    if (inet_pton(AF_INET, copy.c_str(), four.data()) == 1) { return v4(four); }
    std::array<std::uint8_t, 16> sixteen{};
    if (inet_pton(AF_INET6, copy.c_str(), sixteen.data()) == 1) { return Address{sixteen}; }
    return std::nullopt;
}

Address Address::v4(std::array<std::uint8_t, 4> bytes)
{
    std::array<std::uint8_t, 16> mapped{};
    std::copy(v4_prefix.begin(), v4_prefix.end(), mapped.begin());
    std::copy(bytes.begin(), bytes.end(), mapped.begin() + v4_prefix.size());
    return Address{mapped};
}

std::string Address::text() const
{
    std::array<char, INET6_ADDRSTRLEN> out{};
    if (is_v4()) { inet_ntop(AF_INET, bytes_.data() + v4_prefix.size(), out.data(), out.size()); }
    else { inet_ntop(AF_INET6, bytes_.data(), out.data(), out.size()); }
    return out.data();
}

bool Address::is_v4() const { return std::equal(v4_prefix.begin(), v4_prefix.end(), bytes_.begin()); }

bool Address::is_wildcard() const
{
    const auto from = bytes_.begin() + (is_v4() ? std::ssize(v4_prefix) : 0);
    return std::all_of(from, bytes_.end(), [](std::uint8_t byte) { return byte == 0; });
}

bool Address::overlaps(const Address& other) const
{
    if (*this == other) { return true; }
    const auto covers = [](const Address& wide, const Address& narrow)
    { return wide.is_wildcard() && (!wide.is_v4() || narrow.is_v4()); };
    return covers(*this, other) || covers(other, *this);
}

bool Resource::conflicts(const Resource& other) const
{
    if (kind != other.kind || value != other.value) { return false; }
    if (kind != Kind::port) { return true; }
    return protocol == other.protocol && address && other.address && address->overlaps(*other.address);
}

std::string Resource::text() const
{
    const std::string number = value == 0 ? "any" : std::to_string(value);
    if (kind == Kind::cid) { return "cid " + number; }
    if (kind == Kind::vsock_port) { return "vsock port " + number; }
    const std::string host = address ? address->text() : "?";
    return protocol + (address && !address->is_v4() ? " [" + host + "]:" : " " + host + ":") + number;
}

Result<Wish> make_wish(std::size_t index, std::string_view kind, std::string_view protocol, std::string_view address,
                       std::uint32_t value, std::string_view purpose, bool privileged)
{
    Wish out;
    out.privileged = privileged;
    if (purpose.size() > max_purpose ||
        std::any_of(purpose.begin(), purpose.end(), [](char c) { return c < 0x20 || c > 0x7e; }))
    {
        return invalid(index, "purpose", "must be at most 200 printable ASCII characters");
    }
    out.purpose = purpose;
    out.resource.value = value;
    const auto known = kind_of(kind);
    if (!known) { return invalid(index, "kind", "must be cid, port or vsock_port"); }
    out.resource.kind = *known;
    if (*known != Kind::port)
    {
        if (!protocol.empty() || !address.empty())
        {
            return invalid(index, "protocol", "a " + std::string{kind} + " has neither protocol nor address");
        }
        // 0 to 2 are the hypervisor, the local machine and the host; the last one is the wildcard (vsock(7))
        if (*known == Kind::cid && (value == 1 || value == 2 || value == 0xffff'ffff))
        {
            return invalid(index, "value", "must be a CID in 3..4294967294");
        }
        if (value == 0xffff'ffff) { return invalid(index, "value", "must be a vsock port in 1..4294967294"); }
        return out;
    }
    out.resource.protocol = protocol.empty() ? "tcp" : protocol;
    if (out.resource.protocol != "tcp" && out.resource.protocol != "udp")
    {
        return invalid(index, "protocol", "must be tcp or udp");
    }
    out.resource.address = Address::parse(address.empty() ? "127.0.0.1" : address);
    if (!out.resource.address) { return invalid(index, "address", "must be an IPv4 or IPv6 address"); }
    if (value > 65535) { return invalid(index, "value", "must be a port in 1..65535"); }
    return out;
}

Result<Plan> plan(const std::vector<Wish>& wishes, Leases& held, HostFacts& host, const Ranges& ranges, Start start)
{
    Plan out;
    Granting granting{held, host, ranges, start};
    // What is asked for by name comes first: an earlier "any" must not take it.
    std::vector<std::vector<Resource>> by_wish(wishes.size());
    for (const bool named : {true, false})
    {
        for (std::size_t i = 0; i < wishes.size(); ++i)
        {
            if ((wishes[i].resource.value != 0) != named) { continue; }
            auto refused = granting.grant(wishes[i], by_wish[i]);
            if (!refused) { return std::move(refused).error(); }
            if (*refused)
            {
                out.refusal = std::move(*refused);
                return out;
            }
        }
    }
    for (auto& one : by_wish) { out.granted.push_back(std::move(one.front())); }
    return out;
}

Plan plan(const std::vector<Wish>& wishes, const std::vector<Held>& held, HostFacts& host, const Ranges& ranges, Start start)
{
    HeldList list{held};
    auto planned = plan(wishes, static_cast<Leases&>(list), host, ranges, start);
    return planned ? std::move(*planned) : Plan{}; // a list in memory gives no error
}

} // namespace dstack::allocator
