#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::auth
{

/// What GET /metrics counts, as OpenMetrics text.
class Metrics
{
  public:
    /// One answer: `rule` decided (one of Decision::rule's words); `took_us` from the request to the answer.
    void count(std::string_view kind, std::string_view rule, bool allowed, std::uint64_t took_us);
    /// Families with # TYPE and # HELP; the caller adds others and "# EOF".
    void append_to(std::string& out) const;

  private:
    struct Decisions
    {
        std::string kind;
        std::string rule;
        bool allowed = false;
        std::uint64_t count = 0;
    };
    static constexpr std::array<std::uint64_t, 14> bounds_us{100,    250,    500,     1'000,   2'500,     5'000,     10'000,
                                                             25'000, 50'000, 100'000, 250'000, 1'000'000, 3'000'000, 10'000'000};
    std::vector<Decisions> decisions_; ///< in the order in which they first came; bounded by the words that there are
    std::array<std::uint64_t, bounds_us.size() + 1> buckets_{};
    std::uint64_t sum_us_ = 0;
};

/// "# TYPE ...", "# HELP ..." and one sample without labels. A unit is the end of the name ("_seconds").
void append_gauge(std::string& out, std::string_view name, std::string_view help, std::string_view value);

} // namespace dstack::auth
