#pragma once
#include "services/auth/backend.hpp"
#include "services/auth/ledger.hpp"
#include "shared/http/message.hpp"

namespace dstack::auth
{

/// The HTTP side: one request in, one decision written down, one answer out.
class Webhook
{
  public:
    Webhook(Backend& backend, Ledger* ledger) : backend_(backend), ledger_(ledger) {}
    Task<http::Response> answer(http::Request request);

  private:
    Task<http::Response> decide_boot(Kind kind, http::Request request);
    Task<http::Response> tell_info();
    Task<http::Response> tell_health();
    Backend& backend_;
    Ledger* ledger_; ///< null: nothing is written down
    BootInfoReader reader_;
};

} // namespace dstack::auth
