#pragma once
#include "shared/base/result.hpp"
#include <optional>
#include <string>
#include <string_view>

namespace dstack::vmm
{

/// The parameters of GET /logs (dstack-protocol.md B.15).
struct LogRequest
{
    std::string id;
    bool follow = false;
    bool ansi = false;
    std::size_t lines = 10'000;
    std::string channel = "serial";
};
/// The error's code tells the status: invalid_argument 422 (a parameter), failed_precondition 400 (the channel).
Result<LogRequest> parse_log_query(std::string_view query);

/// Where the last `lines` lines of a file begin; blocking, reads backwards at most 64 MiB.
std::uint64_t tail_offset(int fd, std::uint64_t size, std::size_t lines);

/// Makes a guest's bytes into text for /logs: lossy UTF-8, without escape sequences unless `ansi`. Pieces may be cut
/// anywhere: what may be the beginning of a character or sequence is held back for the next one.
class LogText
{
  public:
    explicit LogText(bool ansi) : ansi_(ansi) {}
    std::string feed(std::string_view bytes);
    /// What was held back, at the end.
    std::string rest();

  private:
    bool ansi_;
    std::string held_;
};

} // namespace dstack::vmm
