#pragma once
#include "bus/schema/logs.hpp"
#include "services/logs/collector.hpp"
#include "shared/http/message.hpp"

namespace dstack::logs
{

/// What is asked of this service, over the bus and over HTTP:
///   GET /logs                     the sources, as JSON
///   GET /logs/SOURCE?lines=&from=&follow=&format=
/// `lines` (1 to 10000, default 200) newest lines, or from sequence `from` on; `follow=true` goes on with new ones until
/// the VM is removed. `format` text (the bytes as they were written) or json (one LogLine per line).
class Api
{
  public:
    /// `url`: where this service can be reached, for LogsQuery::Reply::follow_url.
    Api(Loop& loop, Collector& collector, std::string url) : loop_(loop), collector_(collector), url_(std::move(url)) {}
    Task<http::Response> answer(http::Request request);
    Task<Result<schema::LogsQuery::Reply>> query(schema::LogsQuery query);

  private:
    Task<Result<http::Response>> lines(http::Request request);
    Task<http::Response> list() const;
    Loop& loop_;
    Collector& collector_;
    std::string url_;
};

} // namespace dstack::logs
