#pragma once
#include "shared/http/client.hpp"
#include <deque>
#include <string>
#include <utility>

namespace dstack::guest
{

/// Tells the host what happens, in order and in the background: a host that does not answer never holds up the boot.
/// Failures are logged.
class Notifier
{
  public:
    Notifier(Loop& loop, std::string host_api_url);
    void push(std::string event, std::string payload);
    /// Completes when everything has been told or given up, at the latest after `limit`.
    Task<> flush(milliseconds limit);

  private:
    static constexpr std::size_t max_queue = 64;
    Task<> deliver();
    Task<> send(std::string body);
    Task<Result<Done>> wait_idle();
    Loop& loop_;
    http::Client client_;
    std::string url_;
    std::deque<std::string> queue_;
    Event filled_, idle_;
    Scope scope_;
};

} // namespace dstack::guest
