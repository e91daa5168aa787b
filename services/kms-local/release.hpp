#pragma once
#include "services/kms-local/keys.hpp"
#include "services/kms-local/prpc.hpp"
#include "shared/attestation/simulated.hpp"

/// What the KMS decides and derives, without I/O.
namespace dstack::kms
{

/// The webhook's answer to POST /bootAuth/app (dstack-protocol.md E.4).
struct AuthReply
{
    bool is_allowed = false;
    std::string gateway_app_id;
    std::string reason;
};
/// A status outside 2xx and anything but an object with all three keys is an error, worded as upstream words it: never
/// a yes.
Result<AuthReply> parse_auth_reply(std::string_view url, int status, std::string_view body);

/// The webhook's answer to GET.
struct AuthInfo
{
    std::string kms_contract_address;
    std::string gateway_app_id;
    std::uint64_t chain_id = 0;
    std::string app_implementation;
};
Result<AuthInfo> parse_auth_info(std::string_view url, int status, std::string_view body);

/// `url` with "bootAuth/app" behind it, and one slash between.
std::string boot_auth_url(std::string_view url);

/// The public half of the file in `tee_host_key_file`: 64 hex digits, a newline allowed.
Result<attestation::Bytes32> parse_host_key(std::string_view text);

/// The attested image must be the one that the request's vm_config speaks of, when it speaks of one.
Result<Done> check_image(const attestation::Claims& claims, std::string_view vm_config);

/// All keys of one instance. Only for a boot that was allowed.
Result<AppKeys> release(const RootKeys& root, const attestation::BootInfo& boot, std::string gateway_app_id);
Result<EnvPublicKey> env_public_key(const RootKeys& root, crypto::View app_id, std::uint64_t unix_time);

/// The TLS certificate of the RPC server, with a key of its own; made anew at each start.
struct RpcIdentity
{
    std::string chain_pem; ///< leaf, then the CA
    std::string key_pem;
};
Result<RpcIdentity> make_rpc_identity(const RootKeys& root, const std::vector<std::string>& dns_names,
                                      const std::vector<std::string>& ip_addresses);

} // namespace dstack::kms
