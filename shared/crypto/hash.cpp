#include "shared/crypto/hash.hpp"
#include <bit>
#include <cstdlib>
#include <openssl/evp.h>
#include <openssl/hmac.h>

namespace dstack::crypto
{

namespace
{

template <std::size_t N>
Fixed<N> digest(const EVP_MD* algorithm, View data)
{
    Fixed<N> out;
    unsigned int size = 0;
    // Fails only when memory runs out: the algorithms are always there.
    if (EVP_Digest(data.data(), data.size(), out.data(), &size, algorithm, nullptr) != 1 || size != N) { std::abort(); }
    return out;
}

constexpr std::array<std::uint64_t, 24> round_constants = {
    0x0000000000000001, 0x0000000000008082, 0x800000000000808a, 0x8000000080008000, 0x000000000000808b,
    0x0000000080000001, 0x8000000080008081, 0x8000000000008009, 0x000000000000008a, 0x0000000000000088,
    0x0000000080008009, 0x000000008000000a, 0x000000008000808b, 0x800000000000008b, 0x8000000000008089,
    0x8000000000008003, 0x8000000000008002, 0x8000000000000080, 0x000000000000800a, 0x800000008000000a,
    0x8000000080008081, 0x8000000000008080, 0x0000000080000001, 0x8000000080008008};

using Lanes = std::array<std::uint64_t, 25>; ///< lane (x, y) is at x + 5 * y

/// Keccak-f[1600], FIPS 202 section 3.3.
void permute(Lanes& a)
{
    for (const auto constant : round_constants)
    {
        // theta
        std::array<std::uint64_t, 5> column{};
        for (std::size_t x = 0; x < 5; ++x) { column[x] = a[x] ^ a[x + 5] ^ a[x + 10] ^ a[x + 15] ^ a[x + 20]; }
        for (std::size_t x = 0; x < 5; ++x)
        {
            const auto mix = column[(x + 4) % 5] ^ std::rotl(column[(x + 1) % 5], 1);
            for (std::size_t y = 0; y < 25; y += 5) { a[x + y] ^= mix; }
        }
        // rho and pi: walk the 24 lanes that move; the rotations are the triangular numbers
        std::size_t x = 1;
        std::size_t y = 0;
        auto carried = a[1];
        for (int t = 0; t < 24; ++t)
        {
            const auto next_y = (2 * x + 3 * y) % 5;
            x = y;
            y = next_y;
            const int rotation = (t + 1) * (t + 2) / 2 % 64;
            const auto moved = std::rotl(carried, rotation);
            carried = a[x + 5 * y];
            a[x + 5 * y] = moved;
        }
        // chi
        for (std::size_t row = 0; row < 25; row += 5)
        {
            const std::array<std::uint64_t, 5> b = {a[row], a[row + 1], a[row + 2], a[row + 3], a[row + 4]};
            for (std::size_t i = 0; i < 5; ++i) { a[row + i] = b[i] ^ (~b[(i + 1) % 5] & b[(i + 2) % 5]); }
        }
        // iota
        a[0] ^= constant;
    }
}

} // namespace

Bytes32 sha256(View data) { return digest<32>(EVP_sha256(), data); }
Bytes48 sha384(View data) { return digest<48>(EVP_sha384(), data); }
Bytes64 sha512(View data) { return digest<64>(EVP_sha512(), data); }

Bytes32 keccak256(View data)
{
    constexpr std::size_t rate = 136;
    Lanes lanes{};
    const auto absorb = [&lanes](std::size_t position, std::uint8_t byte)
    { lanes[position / 8] ^= std::uint64_t{byte} << (8 * (position % 8)); };
    std::size_t position = 0;
    for (const auto byte : data)
    {
        absorb(position, byte);
        if (++position == rate)
        {
            permute(lanes);
            position = 0;
        }
    }
    absorb(position, 0x01);
    absorb(rate - 1, 0x80);
    permute(lanes);
    Bytes32 out;
    for (std::size_t i = 0; i < out.size(); ++i) { out[i] = static_cast<std::uint8_t>(lanes[i / 8] >> (8 * (i % 8))); }
    return out;
}

struct Sha256::State
{
    std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context{EVP_MD_CTX_new(), &EVP_MD_CTX_free};
};

Sha256::Sha256() : state_(std::make_unique<State>())
{
    if (!state_->context || EVP_DigestInit_ex(state_->context.get(), EVP_sha256(), nullptr) != 1) { std::abort(); }
}
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;
Sha256::~Sha256() = default;

void Sha256::update(View data)
{
    if (EVP_DigestUpdate(state_->context.get(), data.data(), data.size()) != 1) { std::abort(); }
}

Bytes32 Sha256::finish()
{
    Bytes32 out;
    unsigned int size = 0;
    if (EVP_DigestFinal_ex(state_->context.get(), out.data(), &size) != 1) { std::abort(); }
    return out;
}

Bytes32 hmac_sha256(View key, View data)
{
    Bytes32 out;
    unsigned int size = 0;
    if (HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), data.data(), data.size(), out.data(), &size) ==
        nullptr)
    {
        std::abort();
    }
    return out;
}

} // namespace dstack::crypto
