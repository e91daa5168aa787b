#include "shared/crypto/p256.hpp"
#include "shared/crypto/openssl.hpp"
#include <algorithm>
#include <openssl/core_names.h>
#include <openssl/pem.h>

namespace dstack::crypto
{

namespace
{

using Group = Owned<EC_GROUP, EC_GROUP_free>;
using Point = Owned<EC_POINT, EC_POINT_clear_free>;

// DER around the two variable parts; all lengths are fixed for this curve (RFC 5208, RFC 5915, RFC 5480).
constexpr std::array<std::uint8_t, 36> pkcs8_head = {
    0x30, 0x81, 0x87, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
    0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x6d, 0x30, 0x6b, 0x02, 0x01, 0x01, 0x04, 0x20};
constexpr std::array<std::uint8_t, 5> pkcs8_middle = {0xa1, 0x44, 0x03, 0x42, 0x00};
constexpr std::array<std::uint8_t, 26> spki_head = {0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48,
                                                    0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
                                                    0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00};

Error invalid(std::string_view what) { return {Errc::invalid_argument, std::string{what}, {}, {}}; }

int no_passphrase(char*, int, int, void*) { return -1; }

} // namespace

P256Key P256Key::generate()
{
    for (;;)
    {
        auto scalar = random_fixed<32>();
        auto key = from_scalar(scalar);
        wipe(scalar);
        if (key) { return std::move(*key); }
    }
}

Result<P256Key> P256Key::from_scalar(const Bytes32& scalar)
{
    const Group group{EC_GROUP_new_by_curve_name(NID_X9_62_prime256v1)};
    const BigNumber number{BN_secure_new()};
    if (!group || !number || BN_bin2bn(scalar.data(), static_cast<int>(scalar.size()), number.get()) == nullptr)
    {
        std::abort();
    }
    if (BN_is_zero(number.get()) != 0 || BN_cmp(number.get(), EC_GROUP_get0_order(group.get())) >= 0)
    {
        return invalid("not a P-256 private key: out of range");
    }
    BN_set_flags(number.get(), BN_FLG_CONSTTIME);
    const Point point{EC_POINT_new(group.get())};
    P256Key key;
    key.scalar_ = scalar;
    if (!point || EC_POINT_mul(group.get(), point.get(), number.get(), nullptr, nullptr, nullptr) != 1 ||
        EC_POINT_point2oct(group.get(), point.get(), POINT_CONVERSION_UNCOMPRESSED, key.point_.data(),
                           key.point_.size(), nullptr) != key.point_.size())
    {
        return openssl_error("P-256 public key");
    }
    return key;
}

Result<P256Key> P256Key::from_pem(std::string_view pem)
{
    const auto bio = memory_bio(view(pem));
    const Pkey pkey{bio ? PEM_read_bio_PrivateKey(bio.get(), nullptr, no_passphrase, nullptr) : nullptr};
    if (!pkey) { return openssl_error("not a PEM private key"); }
    std::array<char, 32> group{};
    std::size_t size = 0;
    BIGNUM* raw = nullptr;
    if (EVP_PKEY_get_group_name(pkey.get(), group.data(), group.size(), &size) != 1 ||
        std::string_view{group.data()} != "prime256v1" ||
        EVP_PKEY_get_bn_param(pkey.get(), OSSL_PKEY_PARAM_PRIV_KEY, &raw) != 1)
    {
        return invalid("not a P-256 private key");
    }
    const BigNumber number{raw};
    Bytes32 scalar;
    if (BN_bn2binpad(number.get(), scalar.data(), static_cast<int>(scalar.size())) < 0)
    {
        return invalid("not a P-256 private key: out of range");
    }
    auto key = from_scalar(scalar);
    wipe(scalar);
    return key;
}

Bytes P256Key::spki_der() const
{
    auto out = copy(spki_head);
    append(out, point_);
    return out;
}

Bytes P256Key::pkcs8_der() const
{
    Bytes out;
    out.reserve(pkcs8_head.size() + scalar_.size() + pkcs8_middle.size() +
                point_.size()); // no copy of the secret stays behind
    append(out, pkcs8_head);
    append(out, scalar_);
    append(out, pkcs8_middle);
    append(out, point_);
    return out;
}

std::string P256Key::pkcs8_pem() const
{
    auto der = pkcs8_der();
    const Bio bio{BIO_new(BIO_s_mem())};
    if (!bio || PEM_write_bio(bio.get(), PEM_STRING_PKCS8INF, "", der.data(), static_cast<long>(der.size())) <= 0)
    {
        std::abort();
    }
    wipe(der);
    return bio_text(bio.get());
}

} // namespace dstack::crypto
