#pragma once
#include "services/auth/boot_info.hpp"
#include "shared/crypto/bytes.hpp"
#include <array>

// Ethereum's contract ABI, as far as the KMS contract needs it (dstack-protocol.md, E.7). Pure.
namespace dstack::auth::chain
{

using Selector = crypto::Fixed<4>;
inline constexpr Selector is_app_allowed{0x1e, 0x07, 0x91, 0x98};
inline constexpr Selector is_kms_allowed{0xe0, 0x67, 0xec, 0x9d};
inline constexpr Selector gateway_app_id{0x95, 0xf5, 0x19, 0x31};
inline constexpr Selector app_implementation{0x25, 0xa9, 0x92, 0xda};

/// Calldata of isAppAllowed or isKmsAllowed. What is empty in `boot` (instance id, OS image, mrSystem) is zero in the
/// tuple, as upstream has it. invalid_argument when a value does not fit: the device id of SEV-SNP has 64 bytes, and the
/// contract's field 32.
Result<crypto::Bytes> encode_question(Kind kind, const BootInfo& boot);

/// The contract's own answer.
struct Ruling
{
    bool allowed = false;
    std::string reason; ///< any bytes: the contract wrote them
};

// Strict: every offset and length inside the data, booleans 0 or 1, addresses without bytes before them.
Result<Ruling> decode_ruling(crypto::View data);
Result<std::string> decode_string(crypto::View data);
/// 40 hex digits.
Result<std::string> decode_address(crypto::View data);

/// The text of `revert("...")` or the number of a panic; empty when `data` is neither. May hold any bytes.
std::string revert_reason(crypto::View data);

} // namespace dstack::auth::chain
