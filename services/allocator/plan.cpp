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

const Held* find_conflict(const std::vector<Held>& held, const Resource& resource)
{
    const auto found =
        std::find_if(held.begin(), held.end(), [&](const Held& one) { return one.resource.conflicts(resource); });
    return found != held.end() ? &*found : nullptr;
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

/// The next wish on top of what is held; grants go to `held` too, so that one batch does not take a thing twice.
class Granting
{
  public:
    Granting(std::vector<Held> held, HostFacts& host, const Ranges& ranges, Start start)
        : held_(std::move(held)), host_(host), ranges_(ranges), start_(start)
    {
    }

    std::optional<Refusal> grant(const Wish& wish, std::vector<Resource>& granted)
    {
        Resource resource = wish.resource;
        auto refusal = resource.value != 0 ? check(resource) : choose(resource);
        if (refusal) { return refusal; }
        held_.push_back({resource, "this reservation", wish.purpose});
        granted.push_back(std::move(resource));
        return std::nullopt;
    }

  private:
    std::optional<Refusal> check(const Resource& resource)
    {
        if (const Held* other = find_conflict(held_, resource)) { return taken(resource, described(*other)); }
        auto holder = host_.holder(resource);
        if (!holder) { return Refusal{resource.text(), std::move(holder).error()}; }
        if (*holder) { return taken(resource, **holder); }
        return std::nullopt;
    }

    std::optional<Refusal> choose(Resource& resource)
    {
        const bool port = resource.kind == Kind::port;
        const std::uint32_t first = port ? ranges_.port_first : ranges_.cid_first;
        const std::uint32_t last = port ? ranges_.port_last : ranges_.cid_last;
        std::uint32_t& next = port ? start_.port : start_.cid;
        if (next < first || next > last) { next = first; }
        for (std::uint64_t tried = 0; tried <= last - first; ++tried)
        {
            resource.value = next;
            next = next == last ? first : next + 1;
            if (port && host_.is_ephemeral(static_cast<std::uint16_t>(resource.value))) { continue; }
            if (find_conflict(held_, resource) != nullptr) { continue; }
            auto holder = host_.holder(resource);
            if (!holder) { return Refusal{resource.text(), std::move(holder).error()}; }
            if (!*holder) { return std::nullopt; }
        }
        resource.value = 0;
        const std::string range = std::to_string(first) + "-" + std::to_string(last);
        const std::string what =
            port ? "no free " + resource.protocol + " port at " + resource.address->text() : "no free cid";
        return Refusal{
            resource.text(),
            Error{Errc::resource_exhausted,
                  what + " in " + range,
                  "release leases that are not needed (`dstack leases`), or widen the range in allocator.toml",
                  {}}};
    }

    std::vector<Held> held_;
    HostFacts& host_;
    const Ranges& ranges_;
    Start start_;
};

} // namespace

std::string_view to_string(Kind kind) { return kind == Kind::cid ? "cid" : "port"; }

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
    if (kind == Kind::cid) { return true; }
    return protocol == other.protocol && address && other.address && address->overlaps(*other.address);
}

std::string Resource::text() const
{
    const std::string number = value == 0 ? "any" : std::to_string(value);
    if (kind == Kind::cid) { return "cid " + number; }
    const std::string host = address ? address->text() : "?";
    return protocol + (address && !address->is_v4() ? " [" + host + "]:" : " " + host + ":") + number;
}

Result<Wish> make_wish(std::size_t index, std::string_view kind, std::string_view protocol, std::string_view address,
                       std::uint32_t value, std::string_view purpose)
{
    Wish out;
    if (purpose.size() > max_purpose ||
        std::any_of(purpose.begin(), purpose.end(), [](char c) { return c < 0x20 || c > 0x7e; }))
    {
        return invalid(index, "purpose", "must be at most 200 printable ASCII characters");
    }
    out.purpose = purpose;
    out.resource.value = value;
    if (kind == "cid")
    {
        if (!protocol.empty() || !address.empty())
        {
            return invalid(index, "protocol", "a cid has neither protocol nor address");
        }
        // 0 to 2 are the hypervisor, the local machine and the host; the last one is the wildcard (vsock(7))
        if (value == 1 || value == 2 || value == 0xffff'ffff)
        {
            return invalid(index, "value", "must be a CID in 3..4294967294");
        }
        out.resource.kind = Kind::cid;
        return out;
    }
    if (kind != "port") { return invalid(index, "kind", "must be cid or port"); }
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

Plan plan(const std::vector<Wish>& wishes, const std::vector<Held>& held, HostFacts& host, const Ranges& ranges,
          Start start)
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
            out.refusal = granting.grant(wishes[i], by_wish[i]);
            if (out.refusal) { return out; }
        }
    }
    for (auto& one : by_wish) { out.granted.push_back(std::move(one.front())); }
    return out;
}

} // namespace dstack::allocator
