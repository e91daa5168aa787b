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
    port
};
std::string_view to_string(Kind kind);

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

/// A CID, or a port of a protocol at an address.
struct Resource
{
    Kind kind = Kind::port;
    std::string protocol{};           ///< "tcp" or "udp"; empty for a CID
    std::optional<Address> address{}; ///< absent for a CID
    std::uint32_t value = 0;
    bool conflicts(const Resource& other) const;
    std::string text() const; ///< "tcp 127.0.0.1:8080", "cid 1000"
};

struct Wish
{
    Resource resource; ///< value 0: any free one
    std::string purpose;
};

/// What came over the bus, checked. invalid_argument names the wish: "wishes[1].protocol: must be tcp or udp".
Result<Wish> make_wish(std::size_t index, std::string_view kind, std::string_view protocol, std::string_view address,
                       std::uint32_t value, std::string_view purpose);

/// A lease that is in force.
struct Held
{
    Resource resource;
    std::string owner;
    std::string purpose;
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
};

struct Ranges
{
    std::uint32_t cid_first = 1000;
    std::uint32_t cid_last = 1999;
    std::uint16_t port_first = 18000;
    std::uint16_t port_last = 19999;
};

/// Where the search for a free one starts, so that what was just given back is not handed out at once.
struct Start
{
    std::uint32_t cid = 0;
    std::uint32_t port = 0;
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
Plan plan(const std::vector<Wish>& wishes, const std::vector<Held>& held, HostFacts& host, const Ranges& ranges,
          Start start);

} // namespace dstack::allocator
