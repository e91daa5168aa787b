#pragma once
#include "shared/crypto/bytes.hpp"
#include <memory>

namespace dstack::crypto
{

Bytes32 sha256(View data);
Bytes48 sha384(View data);
Bytes64 sha512(View data);
inline Bytes32 sha256(std::string_view text) { return sha256(view(text)); }
inline Bytes48 sha384(std::string_view text) { return sha384(view(text)); }
inline Bytes64 sha512(std::string_view text) { return sha512(view(text)); }

/// Ethereum's Keccak-256 (padding 0x01), which is not SHA3-256.
Bytes32 keccak256(View data);
inline Bytes32 keccak256(std::string_view text) { return keccak256(view(text)); }

/// SHA-256 of data that comes in pieces, such as an image file.
class Sha256
{
  public:
    Sha256();
    Sha256(Sha256&&) noexcept;
    Sha256& operator=(Sha256&&) noexcept;
    ~Sha256();
    void update(View data);
    /// Ends the computation; call once.
    Bytes32 finish();

  private:
    struct State;
    std::unique_ptr<State> state_;
};

Bytes32 hmac_sha256(View key, View data);

} // namespace dstack::crypto
