#pragma once
#include <chrono>
#include <deque>
#include <optional>
#include <string_view>

namespace dstack::up
{

/// What follows when a service that should run has ended.
struct RestartDecision
{
    bool give_up = false;
    std::chrono::milliseconds delay{0}; ///< before the next start
    std::string_view reason{};          ///< why it was given up: "crash_loop", "config", "usage"
};

/// Backoff that doubles, and a budget: more than `budget` ends within `window` are a crash loop.
class RestartBudget
{
  public:
    static constexpr std::size_t budget = 5;
    static constexpr std::chrono::seconds window{60};
    static constexpr std::chrono::milliseconds first_delay{100};
    static constexpr std::chrono::milliseconds longest_delay{5'000};

    /// `exit_code` is empty when it was ended by a signal or is not known. Codes 64 and 78 (sysexits.h) mean that the
    /// next start would end in the same way: it is given up at once.
    RestartDecision ended(std::chrono::steady_clock::time_point now, std::optional<int> exit_code);
    /// The operator said: try again.
    void reset() { ends_.clear(); }
    std::size_t recent() const { return ends_.size(); }

  private:
    std::deque<std::chrono::steady_clock::time_point> ends_;
};

} // namespace dstack::up
