#pragma once
#include "shared/base/result.hpp"
#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace dstack::ledger
{

/// The hash before the first record.
inline constexpr std::string_view genesis = "0000000000000000000000000000000000000000000000000000000000000000";

/// SHA-256 of a line without its newline, as hex.
using HashText = std::array<char, 64>;
HashText hash_line(std::string_view line);
inline std::string_view view(const HashText& hash) { return {hash.data(), hash.size()}; }

/// What ties a line to its neighbours: {"seq":N, ... ,"prev":"HASH"}.
struct Link
{
    std::uint64_t sequence = 0;
    std::string_view previous; ///< into the line
};
/// data_loss with the reason when the line has not that form. Looks at both ends only.
Result<Link> read_link(std::string_view line);

/// Walks records in order. May begin in the middle: behind a record whose number and hash are known.
class Chain
{
  public:
    Chain() = default;
    Chain(std::uint64_t sequence, std::string_view hash) : sequence_(sequence), hash_(hash) {}
    /// The next line; data_loss with the reason when it does not continue the chain: the chain stays where it was then.
    Result<Done> next(std::string_view line);
    /// Goes on behind this line, whatever was before.
    Result<Done> resume(std::string_view line);
    std::uint64_t sequence() const { return sequence_; }
    const std::string& hash() const { return hash_; }

  private:
    std::uint64_t sequence_ = 0;
    std::string hash_{genesis};
};

} // namespace dstack::ledger
