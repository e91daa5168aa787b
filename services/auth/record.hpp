#pragma once
#include "bus/schema/audit.hpp"
#include "bus/schema/auth.hpp"
#include "services/auth/decide.hpp"
#include <array>
#include <memory>
#include <optional>

namespace dstack::auth
{

/// What is written down: a decision, a change of the policy, or a repair of the ledger itself.
struct Record
{
    std::uint64_t time_ms = 0; ///< unix time
    std::string kind;          ///< app, kms, policy, repair
    std::string policy_hash;   ///< SHA-256 of the policy file in force, hex; empty when it could not be read
    // decisions
    Verdict verdict;
    std::optional<BootInfo> boot; ///< absent when the body was no BootInfo
    std::uint64_t latency_us = 0; ///< from the request to the verdict
    std::string agent;            ///< the KMS' User-Agent
    // changes of the policy
    std::string change;
    std::string app_id;
    std::string compose_hash;
    std::string by;
    std::string reason; ///< also of a repair
};

/// Makes lines of records (docs/ledger.md): a JSON object with "seq" first and "prev", the SHA-256 of the line before, last.
/// What a boot has not is left out, and so is of a check what the boot says already.
class RecordWriter
{
  public:
    /// The line, without a newline; valid until the next. `first_of_flush`: all records before are on disk; the line says
    /// so, which tells a flush that a crash cut short from damage.
    std::string_view line(const Record& record, std::uint64_t sequence, std::string_view previous_hash, bool first_of_flush = false);

  private:
    std::string_view time_text(std::uint64_t time_ms);
    std::uint64_t second_ = ~std::uint64_t{0};
    std::array<char, 24> time_{"1970-01-01T00:00:00.000"}; ///< of that second
    std::unique_ptr<char[]> room_;
    std::size_t size_ = 0;
};

/// A record as it is shown again.
struct Entry
{
    std::uint64_t sequence = 0;
    std::uint64_t time_ms = 0;
    std::string kind;
    std::string policy_hash;
    schema::Decision decision{};        ///< for app and kms
    schema::AuthPolicyChanged change{}; ///< for policy
};

/// All of a decision that can be judged anew.
struct Decided
{
    Entry entry;
    std::vector<schema::Check> checks;
    std::optional<BootInfo> boot;
};

/// Reads single lines, wherever they stand; keeps its buffers from one to the next.
class EntryReader
{
  public:
    EntryReader();
    EntryReader(EntryReader&&) noexcept;
    ~EntryReader();
    /// data_loss with the reason when the line is no record.
    Result<Entry> read(std::string_view line);
    Result<Decided> read_decision(std::string_view line);

  private:
    struct State;
    std::unique_ptr<State> state_;
};

} // namespace dstack::auth
