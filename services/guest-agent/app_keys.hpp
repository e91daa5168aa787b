#pragma once
#include "services/guest-agent/boot_plan.hpp"
#include "shared/http/client.hpp"

namespace dstack::guest
{

struct AppKeys
{
    std::string ca_cert;       ///< PEM
    std::string env_crypt_key; ///< hex; an X25519 secret
    std::string os_image_hash; ///< hex or empty
};

/// The guest's side of dstack-protocol.md E.2: each KMS URL in turn, a client certificate that carries a quote over its
/// own key, and a connection that trusts only the KMS's CA. While no KMS answers at all it tries again until `limit`.
/// Every URL failing gives the first URL's error; a denial is permission_denied and quotes the KMS.
Task<Result<AppKeys>> fetch_app_keys(Loop& loop, BootPlan plan, std::string simulator, milliseconds limit);

} // namespace dstack::guest
