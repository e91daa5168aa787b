#pragma once
#include "bus/schema/types.hpp"
#include "shared/base/result.hpp"
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace dstack::bus
{

/// Who is at the other end of a connection: over ipc as the kernel attested it at the handshake, over tcp by its key.
struct Identity
{
    std::uint32_t uid = 0;
    std::uint32_t gid = 0;
    std::uint32_t pid = 0;
    schema::Role role = schema::Role::none;
    std::string service{}; ///< the one service that it may register as; empty: an operator
    std::string token{};   ///< fingerprint of the key; over tcp only, and then uid, gid and pid say nothing
    std::string address{}; ///< the peer's ip address, over tcp
    std::string token_name{}; ///< over tcp, looked up with the role for each message: not part of the User-Id

    /// "uid:gid:pid:role:service" or "token:fingerprint:address": the ZeroMQ User-Id that comes back on each message.
    std::string user_id() const;
    static Result<Identity> from_user_id(std::string_view text);
    /// "deployer", "operator:uid=1000:pid=42" or "operator:token=laptop:ip=192.0.2.7".
    std::string caller() const;
    /// Whose idempotency keys are the same: a service, a user or a token.
    std::string scope() const;
};

/// How a peer becomes a service or gets a role.
struct IdentityRules
{
    /// service -> "user:dstack-auth" (its unix user) or "exe:/path/of/dstack-auth" (its executable, for a development
    /// instance in which all services run as one user).
    std::map<std::string, std::string> services{};
    std::string admin_group{};
    std::string operator_group = "dstack";
    std::string viewer_group{};
};

/// What the kernel and the user database say about a process.
struct PeerFacts
{
    std::uint32_t uid = 0;
    std::uint32_t gid = 0;
    std::uint32_t pid = 0;
    std::string user;               ///< name of uid, may be empty
    std::string exe;                ///< target of /proc/PID/exe, may be empty
    std::vector<std::string> groups; ///< names of all groups of the user
    bool same_user_as_broker = false;
};

/// "localhost:<uid>:<gid>:<pid>", the address that libzmq gives its ZAP handler for an ipc peer.
Result<PeerFacts> parse_zap_address(std::string_view address);
/// Fills in what can be looked up. A process that is gone has no exe.
void look_up(PeerFacts& facts);

/// A service by its user or executable; else root and the broker's own user are admin; else by group; else refused.
/// A process that is a service has no operator's role: who takes over one service cannot speak for another.
Result<Identity> identify(const PeerFacts& facts, const IdentityRules& rules);

/// permission_denied with the rule, unless the identity may send the command / publish the event.
Result<Done> may_send(const Identity& identity, const schema::CommandType& command);
Result<Done> may_publish(const Identity& identity, const schema::EventType& event);

} // namespace dstack::bus
