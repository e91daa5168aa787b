#include "services/kms-local/service.hpp"
#include "bus/schema/kms.hpp"
#include "services/kms-local/server.hpp"
#include "services/kms-local/tee.hpp"
#include "shared/log/log.hpp"
#include <cstdlib>

namespace dstack::kms
{

namespace
{
/// Set by dstack-kms-supervisor once it has pinned this KMS.
constexpr const char* pinned_ca_variable = "DSTACK_KMS_PINNED_CA";
} // namespace

Task<Result<Done>> serve(Daemon& daemon, Config config)
{
    if (const auto tee = find_tee(""))
    {
        co_return Error{Errc::failed_precondition,
                        "this host has a TEE (" + *tee + "): the embedded KMS runs only on hosts without one",
                        "run dstack-kms in a confidential VM: `dstackup install`",
                        {}};
    }
    const std::string state_dir = config.state_dir;
    const char* const pinned = std::getenv(pinned_ca_variable);
    const std::string expected_ca = pinned != nullptr ? pinned : "";
    auto open = [state_dir, expected_ca] { return open_key_store(state_dir, expected_ca); };
    auto loaded = co_await offload(daemon.loop(), open);
    if (!loaded) { co_return std::move(loaded).error(); }
    const Identity identity = loaded->identity;
    const bool bootstrapped = loaded->bootstrapped;

    auto events = bus::Publisher::open(daemon.loop(), state_dir, bus::ClientConfig{config.bus_directory, "kms-local"});
    if (!events) { co_return std::move(events).error(); }
    Server server{daemon.loop(), config, std::move(*loaded), **events};
    auto listening = server.listen();
    if (!listening) { co_return std::move(listening).error(); }
    if (bootstrapped)
    {
        log::warn("root keys made",
                  {{"ca_fingerprint", identity.ca_fingerprint}, {"k256_pubkey", identity.k256_pubkey}});
        (*events)->emit(schema::KmsBootstrapped{identity.ca_fingerprint, identity.k256_pubkey});
    }
    (*events)->start();
    log::info("serving", {{"listen", config.listen},
                          {"port", server.port()},
                          {"ca_fingerprint", identity.ca_fingerprint},
                          {"simulated", true}});
    daemon.ready();

    co_await daemon.stop_requested();
    const milliseconds for_requests{5'000};
    const milliseconds for_events{2'000};
    co_await server.drain(for_requests);
    co_await (*events)->stop(for_events);
    log::info("stopped");
    co_return Done{};
}

} // namespace dstack::kms
