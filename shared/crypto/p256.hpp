#pragma once
#include "shared/base/result.hpp"
#include "shared/crypto/bytes.hpp"

namespace dstack::crypto
{

/// A P-256 (prime256v1) key pair: the kind of every key in upstream's certificates. Overwritten when destroyed.
class P256Key
{
  public:
    static P256Key generate();
    /// The scalar as 32 bytes, big endian; zero or not below the order is refused.
    static Result<P256Key> from_scalar(const Bytes32& scalar);
    /// PKCS#8 ("PRIVATE KEY") or SEC1 ("EC PRIVATE KEY"); other curves and encrypted keys are refused.
    static Result<P256Key> from_pem(std::string_view pem);

    P256Key(const P256Key&) = default;
    P256Key& operator=(const P256Key&) = default;
    ~P256Key() { wipe(scalar_); }

    const Bytes32& scalar() const { return scalar_; }
    /// Uncompressed point: 0x04 || x || y.
    const Fixed<65>& point() const { return point_; }
    /// SubjectPublicKeyInfo, 91 bytes: what RA-TLS quotes bind.
    Bytes spki_der() const;
    /// PKCS#8 with the public key, 138 bytes: the exact encoding that derive_dh_secret hashes.
    Bytes pkcs8_der() const;
    std::string pkcs8_pem() const;

  private:
    P256Key() = default;
    Bytes32 scalar_{};
    Fixed<65> point_{};
};

} // namespace dstack::crypto
