#pragma once
#include "bus/client/client.hpp"
#include "services/logs/config.hpp"
#include "shared/http/server.hpp"

namespace dstack::logs
{

/// GET /events: the bus' durable events as server-sent events. On the unix socket of the logs API its mode says who may; over
/// TCP it is a listener of its own that wants a bearer token.
class EventServer
{
  public:
    EventServer(Loop& loop, const Config& config) : loop_(loop), config_(config) {}
    EventServer(const EventServer&) = delete;
    EventServer& operator=(const EventServer&) = delete;

    /// Reads the token, or makes it with mode 0600; refuses one that others may read. Then listens, when there is an address.
    Result<Done> open();
    /// From here on there is a bus to read from.
    void use(bus::Client* bus) { bus_ = bus; }
    /// Without a token: the caller has been let in by the mode of a socket.
    Task<http::Response> answer(http::Request request);
    Task<> drain(milliseconds limit);
    /// "127.0.0.1:8010"; empty: no listener.
    std::string address() const;

  private:
    Result<Done> load_token();
    Task<http::Response> answer_stranger(http::Request request);
    Task<Result<Done>> follow(bus::Filter filter, bus::From from, http::BodyWriter* out);

    Loop& loop_;
    const Config& config_;
    bus::Client* bus_ = nullptr;
    std::string token_;
    std::size_t streams_ = 0;
    std::unique_ptr<http::Server> server_;
};

} // namespace dstack::logs
