#pragma once
#include "shared/base/result.hpp"
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace dstack::ledger
{

struct VerifyOptions
{
    std::string directory;
    std::string public_key_path; ///< empty: the one in the directory, which says nothing against who can write there
    /// What somebody noted elsewhere: that record must still be there, with that hash.
    std::optional<std::uint64_t> expect_sequence;
    std::string expect_hash;
};

/// One thing that is not as it was written.
struct Finding
{
    std::string file;
    std::uint64_t offset = 0;
    std::uint64_t sequence = 0; ///< the record (or in checkpoints.ndjson the checkpoint) that it is about; 0: unknown
    std::string what;
};

struct VerifyReport
{
    std::uint64_t records = 0; ///< the number of the last one
    std::uint64_t bytes = 0;
    std::uint64_t files = 0;
    std::string head;                ///< hash of the last record
    std::string ledger;              ///< hash of the first
    std::uint64_t checkpoints = 0;
    std::uint64_t signed_records = 0; ///< the last record that a checkpoint covers: what is behind it could be cut off unseen
    std::uint64_t signed_at_ms = 0;
    std::string public_key;           ///< hex
    std::uint64_t unfinished = 0;     ///< bytes of a record at the end that is not whole: being written, or left by a crash
    std::vector<Finding> findings;    ///< at most 20
    bool more_findings = false;
    bool intact() const { return findings.empty(); }
};

/// Walks all files of a ledger, also of one that is being written. Only what cannot be read at all is an error.
/// `progress` gets the bytes so far.
Result<VerifyReport> verify(const VerifyOptions& options, const std::function<void(std::uint64_t)>& progress = {});

} // namespace dstack::ledger
