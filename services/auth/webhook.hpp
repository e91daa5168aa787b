#pragma once
#include "services/auth/backend.hpp"
#include "services/auth/ledger.hpp"
#include "services/auth/metrics.hpp"
#include "shared/http/message.hpp"
#include <chrono>

namespace dstack::auth
{

/// The HTTP side: one request in, one decision written down, one answer out.
class Webhook
{
  public:
    /// `ledger` null: nothing is written down.
    Webhook(Loop& loop, Backend& backend, Ledger* ledger) : loop_(loop), backend_(backend), ledger_(ledger) {}
    Task<http::Response> answer(http::Request request);

  private:
    using Clock = std::chrono::steady_clock;
    Task<http::Response> decide_boot(Kind kind, http::Request request);
    Task<http::Response> tell_info();
    Task<http::Response> tell_health();
    http::Response tell_metrics() const;
    /// Counts and logs what is answered.
    http::Response tell(const Record& record, std::uint64_t sequence, const Verdict& verdict, const Ground& ground,
                        Clock::time_point began);
    bool may_log(Clock::time_point now);
    Loop& loop_;
    Backend& backend_;
    Ledger* ledger_;
    Metrics metrics_;
    std::uint64_t asked_ = 0;  ///< requests that were read
    std::uint64_t looked_ = 0; ///< the backend looked after so many of them
    Clock::time_point log_second_{};
    std::uint32_t logged_ = 0;    ///< decisions in that second
    std::uint64_t not_logged_ = 0;
};

} // namespace dstack::auth
