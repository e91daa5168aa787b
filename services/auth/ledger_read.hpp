#pragma once
#include "services/auth/ledger.hpp"
#include <functional>

namespace dstack::auth
{

// Blocking reads of a snapshot of the ledger, for another thread.

struct EntryPage
{
    std::vector<Entry> entries;
    std::uint64_t next = 0; ///< the record behind them, which is at `offset` of the file that begins with record `first`
    std::uint64_t first = 0;
    std::uint64_t offset = 0;
};
/// Up to `limit` entries from that number on. `first` and `offset` say where it is; 0: to be looked for.
Result<EntryPage> read_entries(const LedgerSnapshot& ledger, std::uint64_t from, std::size_t limit, std::uint64_t first,
                               std::uint64_t offset);

/// Calls `take` with the lines before record `before` (0: all), newest first, until it says false or so many bytes were
/// read. False when older records were left out for that.
Result<bool> scan_backwards(const LedgerSnapshot& ledger, std::uint64_t before, std::uint64_t max_bytes,
                            const std::function<bool(std::string_view)>& take);

/// The same with the lines from record `from` on, oldest first.
Result<bool> scan_forwards(const LedgerSnapshot& ledger, std::uint64_t from, std::uint64_t max_bytes,
                           const std::function<bool(std::string_view)>& take);

/// not_found when there is no such record.
Result<std::string> read_line(const LedgerSnapshot& ledger, std::uint64_t sequence);

Result<std::vector<schema::Decision>> newest_decisions(const LedgerSnapshot& ledger, const std::string& app_id, std::size_t limit);

/// Of the hundreds of bytes that a line is, only these are looked at before it is parsed.
bool is_decision(std::string_view line);
bool is_of_app(std::string_view line, std::string_view app_id);

/// How far back a question looks: about a second of reading.
inline constexpr std::uint64_t max_scan = 512 * 1024 * 1024;

} // namespace dstack::auth
