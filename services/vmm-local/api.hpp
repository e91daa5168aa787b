#pragma once
#include "services/vmm-local/vmm.hpp"

namespace dstack::vmm
{

/// The HTTP face: `/prpc/<Method>` and `/logs` (dstack-protocol.md A, B.15).
class Api
{
  public:
    explicit Api(Vmm& vmm) : vmm_(vmm) {}
    Task<http::Response> handle(http::Request request);

  private:
    Task<http::Response> prpc(http::Request request);
    Task<Result<std::string>> call(std::string method, std::string body, std::string trace);
    Task<http::Response> logs(http::Request request);
    Vmm& vmm_;
};

/// Bodies of prpc calls may have 10 MiB.
http::BodyPlan plan_api_body(const http::Request& head);

} // namespace dstack::vmm
