#pragma once
#include "bus/broker/tokens.hpp"
#include "shared/crypto/bytes.hpp"

namespace dstack::bus
{

/// The broker's CURVE secret key, `curve.key` in its state directory (64 hex digits, 0600), made on the first call. One
/// that is damaged, or that others may read, is an error: a new one would lock every remote operator out.
Result<crypto::Bytes32> load_server_key(const std::string& directory);

/// `tokens.json` in the same place; none yet is an empty table.
Result<Tokens> load_tokens(const std::string& directory);
/// As a whole, durable when it returns. Blocking.
Result<Done> save_tokens(const std::string& directory, const std::string& text);

} // namespace dstack::bus
