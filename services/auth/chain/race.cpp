#include "services/auth/chain/race.hpp"
#include <algorithm>

namespace dstack::auth::chain
{

Race::Race(std::vector<std::size_t> order, std::size_t quorum, std::chrono::milliseconds hedge_delay)
    : waiting_(order.rbegin(), order.rend()), quorum_(quorum), hedge_delay_(hedge_delay)
{
    settle();
}

std::optional<std::size_t> Race::start(Clock::time_point now)
{
    if (over_ || waiting_.empty()) { return std::nullopt; }
    const bool short_of = running_.size() + finding_.answers.size() < quorum_;
    if (!short_of && now < last_start_ + hedge_delay_) { return std::nullopt; }
    const std::size_t next = waiting_.back();
    waiting_.pop_back();
    running_.push_back({next, now});
    last_start_ = now;
    return next;
}

std::optional<Clock::time_point> Race::next_start() const
{
    if (over_ || waiting_.empty()) { return std::nullopt; }
    return last_start_ + hedge_delay_;
}

void Race::answered(std::size_t endpoint, Answer answer)
{
    if (!stop(endpoint)) { return; }
    finding_.answers.push_back({endpoint, std::move(answer)});
    if (!agree(finding_.answers.front().answer, finding_.answers.back().answer)) { end(Finding::Kind::disagreed); }
    else if (finding_.answers.size() >= quorum_) { end(Finding::Kind::answered); }
    else { settle(); }
}

void Race::failed(std::size_t endpoint, Failure failure)
{
    if (!stop(endpoint)) { return; }
    const bool wrong_chain = failure.fault == Fault::wrong_chain;
    finding_.failures.push_back({endpoint, std::move(failure)});
    if (wrong_chain) { end(Finding::Kind::wrong_chain); }
    else { settle(); }
}

void Race::expire()
{
    if (over_) { return; }
    for (const Running& one : running_) { finding_.failures.push_back({one.endpoint, {Fault::timeout, "no answer", {}}}); }
    waiting_.clear();
    running_.clear();
    settle();
}

std::vector<std::size_t> Race::late(Clock::time_point now) const
{
    std::vector<std::size_t> out;
    for (const Running& one : running_)
    {
        if (now - one.since >= hedge_delay_) { out.push_back(one.endpoint); }
    }
    return out;
}

void Race::end(Finding::Kind kind)
{
    finding_.kind = kind;
    over_ = true;
}

/// Nobody is left who could answer.
void Race::settle()
{
    if (!over_ && running_.empty() && waiting_.empty()) { end(Finding::Kind::unavailable); }
}

bool Race::stop(std::size_t endpoint)
{
    const auto found = std::find_if(running_.begin(), running_.end(), [&](const Running& one) { return one.endpoint == endpoint; });
    if (over_ || found == running_.end()) { return false; }
    running_.erase(found);
    return true;
}

} // namespace dstack::auth::chain
