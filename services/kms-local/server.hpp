#pragma once
#include "bus/client/publisher.hpp"
#include "services/kms-local/config.hpp"
#include "services/kms-local/key_store.hpp"
#include "services/kms-local/release.hpp"
#include "shared/http/client.hpp"
#include "shared/http/server.hpp"
#include <memory>

namespace dstack::kms
{

/// The routes of the KMS.
class Server
{
  public:
    Server(Loop& loop, const Config& config, Loaded loaded, bus::Publisher& events);

    /// TLS with a fresh certificate, then listens.
    Result<Done> listen();
    std::uint16_t port() const { return http_.port(); }
    Task<> drain(milliseconds limit);

  private:
    Task<http::Response> handle(http::Request request);
    Task<Result<std::string>> call(std::string method, std::string body, std::string client_cert_der);
    Task<Result<std::string>> get_meta();
    Task<Result<std::string>> get_app_key(std::string body, std::string client_cert_der);
    Task<Result<attestation::Verified>> attested(std::string client_cert_der);
    Task<Result<AuthReply>> ask(attestation::BootInfo boot);
    Result<std::string> env_key(std::string_view body) const;
    void refused(const attestation::BootInfo& boot, std::string_view reason);

    Loop& loop_;
    const Config& config_;
    Loaded loaded_;
    bus::Publisher& events_;
    http::Client webhook_;
    std::uint64_t attestation_requests_ = 0;
    std::uint64_t attestation_failures_ = 0;
    http::Server http_; ///< last: its handlers use all of the above
};

} // namespace dstack::kms
