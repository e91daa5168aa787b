#pragma once
#include "shared/base/result.hpp"
#include "shared/state/database.hpp"
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

// The journal's file: its tables, and what is checked when it is opened. Blocks: for start-up.
namespace dstack::bus
{

extern const std::vector<std::string> journal_migrations;

/// Of one event's envelope: XXH3, 64 bits. SQLite notices damage to its pages' structure, not to their content.
std::int64_t checksum(std::string_view envelope);
/// data_loss that names the event.
Error damaged_event(const std::string& path, std::uint64_t sequence, std::string_view what);

/// The newest acknowledged sequence, in a small file of its own that is mapped into memory: it costs no write to disk and
/// survives every death of the process. When the journal is found to end before it, acknowledged events are gone.
class HighWater
{
  public:
    HighWater() = default;
    HighWater(HighWater&& other) noexcept;
    HighWater& operator=(HighWater&& other) noexcept;
    ~HighWater();
    static Result<HighWater> open(const std::string& path);
    /// 0 when it is of another epoch.
    std::uint64_t of(std::uint64_t epoch) const;
    void set(std::uint64_t epoch, std::uint64_t sequence);

  private:
    struct Cell;
    Cell* cell_ = nullptr;
};

/// The first column of the first row; 0 when there is none.
Result<std::uint64_t> one_number(state::Connection& db, std::string_view sql, std::initializer_list<state::Value> values = {});

struct LostTail
{
    std::uint64_t from = 0;
    std::uint64_t to = 0;
};

struct JournalOpening
{
    std::uint64_t epoch = 0;
    std::uint64_t first = 1;
    std::uint64_t last = 0;
    std::vector<std::string> services;
    LostTail lost;
};

/// Reads the facts that are needed before the loop runs, verifies the newest events, and records what was lost behind them as a
/// gap. The journal must have its tables.
Result<JournalOpening> open_journal_file(const std::string& path, const HighWater& high_water);

} // namespace dstack::bus
