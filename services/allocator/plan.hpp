#pragma once
#include "shared/base/result.hpp"
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::allocator
{

enum class Kind
{
    cid,
    port,
    vsock_port ///< a vsock port of the host, on which a VMM listens for its guests
};
std::string_view to_string(Kind kind);
std::optional<Kind> kind_of(std::string_view text);

/// An IP address; IPv4 is kept mapped (::ffff:a.b.c.d), as the kernel sees it from an IPv6 socket.
class Address
{
  public:
    static std::optional<Address> parse(std::string_view text);
    static Address v4(std::array<std::uint8_t, 4> bytes);
    static Address v6(std::array<std::uint8_t, 16> bytes) { return Address{bytes}; }
    std::string text() const; ///< canonical: "127.0.0.1", "::1"
    bool is_v4() const;
    bool is_wildcard() const; ///< 0.0.0.0 or ::
    const std::array<std::uint8_t, 16>& bytes() const { return bytes_; }
    bool operator==(const Address&) const = default;
    /// Whether two sockets with the same protocol and port would be in each other's way. "::" is taken as dual-stack,
    /// as Linux does by default.
    bool overlaps(const Address& other) const;

  private:
    explicit Address(std::array<std::uint8_t, 16> bytes) : bytes_(bytes) {}
    std::array<std::uint8_t, 16> bytes_;
};

/// A CID, a vsock port, or a port of a protocol at an address.
struct Resource
{
    Kind kind = Kind::port;
    std::string protocol{};           ///< "tcp" or "udp"; empty unless it is a port
    std::optional<Address> address{}; ///< absent unless it is a port
    std::uint32_t value = 0;
    bool conflicts(const Resource& other) const;
    std::string text() const; ///< "tcp 127.0.0.1:8080", "cid 1000"
};

struct Wish
{
    Resource resource; ///< value 0: any free one
    std::string purpose;
    bool privileged = false; ///< a port below ip_unprivileged_port_start may be granted
};

/// What came over the bus, checked. invalid_argument names the wish: "wishes[1].protocol: must be tcp or udp".
Result<Wish> make_wish(std::size_t index, std::string_view kind, std::string_view protocol, std::string_view address,
                       std::uint32_t value, std::string_view purpose, bool privileged = false);

/// A lease that is in force.
struct Held
{
    Resource resource;
    std::string owner;
    std::string purpose;
};

/// The leases that are in force.
class Leases
{
  public:
    virtual ~Leases() = default;
    /// One that is in the way of `resource`.
    virtual Result<std::optional<Held>> conflict(const Resource& resource) = 0;
    /// The lowest value from `first` to `last` that no lease is in the way of.
    virtual Result<std::optional<std::uint32_t>> first_free(const Resource& resource, std::uint32_t first,
                                                            std::uint32_t last) = 0;
};

/// In memory.
class HeldList : public Leases
{
  public:
    explicit HeldList(std::vector<Held> held) : held_(std::move(held)) {}
    Result<std::optional<Held>> conflict(const Resource& resource) override;
    Result<std::optional<std::uint32_t>> first_free(const Resource& resource, std::uint32_t first,
                                                    std::uint32_t last) override;
    void add(Held held) { held_.push_back(std::move(held)); }
    const Held* find(const Resource& resource) const;

  private:
    std::vector<Held> held_;
};

/// What the kernel says; asked only where a decision needs it.
class HostFacts
{
  public:
    virtual ~HostFacts() = default;
    /// Who holds it, in words ("nginx, pid 812"); nullopt: nobody. An error when it can never be bound (no such
    /// address).
    virtual Result<std::optional<std::string>> holder(const Resource& resource) = 0;
    /// Whether the kernel takes this port by itself for outgoing connections.
    virtual bool is_ephemeral(std::uint16_t port) = 0;
    /// Whether the administrator has set it aside (ip_local_reserved_ports): granted by name only.
    virtual bool is_set_aside(std::uint16_t) { return false; }
    /// Below ip_unprivileged_port_start.
    virtual bool is_privileged(std::uint16_t) { return false; }
};

struct Ranges
{
    std::uint32_t cid_first = 1000;
    std::uint32_t cid_last = 1999;
    std::uint16_t port_first = 18000;
    std::uint16_t port_last = 19999;
    std::uint32_t vsock_first = 20000;
    std::uint32_t vsock_last = 29999;
};

/// Where the search for a free one starts, so that what was just given back is not handed out at once.
struct Start
{
    std::uint32_t cid = 0;
    std::uint32_t port = 0;
    std::uint32_t vsock = 0;
};

struct Refusal
{
    std::string wanted;
    Error error;
};

struct Plan
{
    std::vector<Resource> granted;    ///< one per wish, in order, when there is no refusal
    std::optional<Refusal> refusal{}; ///< then nothing is granted
};

/// All wishes or none. A wish with a value gets that one or is refused: already_exists when somebody has it,
/// failed_precondition when nobody could have it, resource_exhausted when a range has no free one.
/// An error: the leases could not be read.
Result<Plan> plan(const std::vector<Wish>& wishes, Leases& held, HostFacts& host, const Ranges& ranges, Start start);
Plan plan(const std::vector<Wish>& wishes, const std::vector<Held>& held, HostFacts& host, const Ranges& ranges,
          Start start);

} // namespace dstack::allocator
