#pragma once
#include "shared/base/result.hpp"
#include "shared/crypto/bytes.hpp"
#include <cstdint>
#include <string>
#include <string_view>

namespace dstack::ledger
{

/// "The ledger had this many records, and the last one had this hash", signed. One line of checkpoints.ndjson.
struct Checkpoint
{
    std::uint64_t number = 0; ///< 1, 2, 3, ...
    std::uint64_t time_ms = 0;
    std::uint64_t records = 0;
    std::string hash;          ///< of the last record; genesis when there is none
    std::string ledger;        ///< hash of the first record: names the ledger; empty when there is none
    std::uint64_t segment = 0; ///< number of the first record of the file that the last record is in
    std::uint64_t offset = 0;  ///< where the last record ends in that file
    std::string previous;      ///< hash of the checkpoint's line before; genesis
};

/// {"type":"dstack.ledger_checkpoint/v1",...,"prev":HASH,"signature":HEX}. The signature is Ed25519 over all that is
/// before `,"signature":`.
std::string encode_checkpoint(const Checkpoint& checkpoint, const crypto::Bytes32& seed);
/// data_loss with the reason when it is none, or not signed by that key.
Result<Checkpoint> read_checkpoint(std::string_view line, const crypto::Bytes32& public_key);

/// PKCS#8 and SubjectPublicKeyInfo as PEM (RFC 8410), as `openssl pkey` reads them.
std::string seed_pem(const crypto::Bytes32& seed);
std::string public_pem(const crypto::Bytes32& public_key);
Result<crypto::Bytes32> seed_from_pem(std::string_view pem);
Result<crypto::Bytes32> public_from_pem(std::string_view pem);

struct Key
{
    crypto::Bytes32 seed{};
    crypto::Bytes32 public_key{};
};
/// The key of the ledger in `directory`; made (0600, the public half beside it) when there is none and `may_make`.
/// A key that others may read is refused.
Result<Key> load_key(const std::string& directory, bool may_make);

} // namespace dstack::ledger
