#pragma once
#include "services/deployer/config.hpp"
#include "shared/http/client.hpp"
#include "shared/runtime/scope.hpp"
#include <optional>
#include <string>
#include <vector>

namespace dstack::deployer
{

/// A VMM over its prpc HTTP API (part A), upstream's or the embedded one.
class Vmm
{
  public:
    Vmm(Loop& loop, std::string url, std::string token, milliseconds patience)
        : loop_(loop), client_(loop), url_(std::move(url)), token_(std::move(token)), patience_(patience)
    {
    }

    /// POST /prpc/<method>?json. Its own words when it answers with an error; a refused connection is tried again for the
    /// patience, since nothing was sent; any other failure of the transport leaves open whether the VMM has done it.
    /// `trace`: sent along as the traceparent header, as a child; may be empty.
    Task<Result<std::string>> call(std::string method, std::string body, milliseconds limit, std::string trace);
    Task<Result<std::vector<ImageInfo>>> images();
    Task<Result<std::vector<VmSight>>> vms();
    Task<Result<std::optional<VmSight>>> look(std::string vm_id);

  private:
    Loop& loop_;
    http::Client client_;
    std::string url_;
    std::string token_;
    milliseconds patience_;
};

/// One GET on a published port: any answer is evidence; so is a connection that is still open after two seconds for the
/// second time in a row (`held` counts): a server that waits to be spoken to. A refused, reset or closed connection is not:
/// user-mode networking accepts on the host before the guest has.
Task<Result<std::string>> ask_port(Loop& loop, PortMapping port, int& held);

} // namespace dstack::deployer
