#pragma once
#include "bus/schema/auth.hpp"
#include "services/auth/decide.hpp"
#include <memory>
#include <optional>

namespace dstack::auth
{

/// The hash before the first record.
inline constexpr std::string_view genesis = "0000000000000000000000000000000000000000000000000000000000000000";

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

/// One line of the ledger without its newline: a JSON object with "seq" first and "prev", the SHA-256 of the line
/// before, last. So a record that was changed, removed or moved breaks the chain.
std::string encode_record(const Record& record, std::uint64_t sequence, std::string_view previous_hash);

/// SHA-256 of a line, hex.
std::string line_hash(std::string_view line);

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

/// Reads single lines, wherever they stand.
class EntryReader
{
  public:
    EntryReader();
    EntryReader(EntryReader&&) noexcept;
    ~EntryReader();
    /// data_loss with the reason when the line is no record. `previous`: the hash that it names.
    Result<Entry> read(std::string_view line, std::string* previous = nullptr);

  private:
    struct State;
    std::unique_ptr<State> state_;
};

/// Walks a ledger from its first line.
class Chain
{
  public:
    /// The next line; data_loss with the reason when it does not continue the chain.
    Result<Entry> next(std::string_view line);
    /// The number and the hash of the last line; 0 and `genesis` before the first.
    std::uint64_t sequence() const { return sequence_; }
    const std::string& hash() const { return hash_; }
    /// The hash of the first line: names this ledger. Empty before it.
    const std::string& identity() const { return identity_; }

  private:
    EntryReader reader_;
    std::uint64_t sequence_ = 0;
    std::string hash_{genesis};
    std::string identity_;
};

} // namespace dstack::auth
