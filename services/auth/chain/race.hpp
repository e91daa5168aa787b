#pragma once
#include "services/auth/chain/health.hpp"
#include "services/auth/chain/question.hpp"

// Which endpoint to ask when, and when the answer is there. Pure: the time comes as an argument.
namespace dstack::auth::chain
{

/// How a question ended.
struct Finding
{
    enum class Kind
    {
        answered,    ///< a quorum of endpoints said so
        disagreed,   ///< two endpoints said different things
        wrong_chain, ///< an endpoint is on another chain
        unavailable, ///< not enough endpoints answered
    };
    struct Said
    {
        std::size_t endpoint = 0;
        Answer answer{};
    };
    struct Failed
    {
        std::size_t endpoint = 0;
        Failure failure{};
    };
    Kind kind = Kind::unavailable;
    std::vector<Said> answers{};  ///< in the order they came
    std::vector<Failed> failures{};
    std::string note{}; ///< unavailable without anybody having been asked: why
};

/// One question to several endpoints. At first as many are asked as the quorum needs; one more for each that fails, and
/// one more whenever nothing has come for `hedge_delay`.
class Race
{
  public:
    /// `order`: whom to ask, the best first (order_of).
    Race(std::vector<std::size_t> order, std::size_t quorum, std::chrono::milliseconds hedge_delay);

    /// The endpoint to ask now, if any; to be called until there is none.
    std::optional<std::size_t> start(Clock::time_point now);
    /// When `start` has another one if nothing happens before.
    std::optional<Clock::time_point> next_start() const;
    void answered(std::size_t endpoint, Answer answer);
    void failed(std::size_t endpoint, Failure failure);
    /// The time is over: whoever still runs has failed.
    void expire();
    bool over() const { return over_; }
    /// Those that have not answered though they had the time: a hedge was, or would have been, asked because of them.
    std::vector<std::size_t> late(Clock::time_point now) const;
    Finding take() { return std::move(finding_); }

  private:
    void end(Finding::Kind kind);
    void settle();
    bool stop(std::size_t endpoint);
    std::vector<std::size_t> waiting_; ///< the next one last
    struct Running
    {
        std::size_t endpoint = 0;
        Clock::time_point since{};
    };
    std::vector<Running> running_;
    std::size_t quorum_;
    std::chrono::milliseconds hedge_delay_;
    Clock::time_point last_start_{};
    bool over_ = false;
    Finding finding_;
};

} // namespace dstack::auth::chain
