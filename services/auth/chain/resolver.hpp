#pragma once
#include "shared/runtime/scope.hpp"
#include <map>
#include <string>
#include <vector>

namespace dstack::auth::chain
{

/// Names to addresses, for a few hosts that are asked for again and again. A name server that does not answer must not
/// take more than two threads of the pool, which the ledger needs too, and does not matter as long as an address that
/// worked is known: TLS says whether it is still the host's.
class Resolver
{
  public:
    explicit Resolver(Loop& loop) : loop_(loop), freed_(loop), scope_(loop) {}

    /// At most 8 addresses as text, the preferred one first. Younger than a minute: at once. Older ones are given out
    /// when the name server has not answered within `patience`; where there are none, within `limit`.
    Task<Result<std::vector<std::string>>> addresses(std::string host, milliseconds limit);
    /// The address that worked: the next answer begins with it.
    void prefer(const std::string& host, const std::string& address);

    static constexpr milliseconds patience{250};

  private:
    struct Entry
    {
        explicit Entry(Loop& loop) : done(loop) {}
        std::vector<std::string> addresses{};
        std::string preferred{};
        std::string error{};
        std::chrono::steady_clock::time_point at{};
        bool asking = false;
        Event done;
    };
    Task<> look_up(std::string host, Entry* entry);
    Loop& loop_;
    std::map<std::string, std::unique_ptr<Entry>> entries_{};
    std::size_t busy_ = 0;
    Event freed_;
    Scope scope_; ///< last: its tasks use the rest
};

} // namespace dstack::auth::chain
