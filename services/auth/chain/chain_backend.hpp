#pragma once
#include "services/auth/backend.hpp"
#include "services/auth/chain/settings.hpp"
#include "shared/runtime/scope.hpp"

namespace dstack::auth::chain
{

/// The KMS contract as the source of verdicts. Reads the file of endpoints and the roots, when the settings name them
/// (blocking: at start). Asks nobody before `begin`.
class ChainBackend : public Backend
{
  public:
    static Result<std::unique_ptr<ChainBackend>> open(Loop& loop, Settings settings);
    /// Asks each endpoint once, so that a wrong one is in the log before it is needed, and then goes on probing.
    virtual void begin() = 0;
    virtual std::size_t endpoints() const = 0;
};

} // namespace dstack::auth::chain
