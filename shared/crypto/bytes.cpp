#include "shared/crypto/bytes.hpp"
#include <cstdlib>
#include <openssl/crypto.h>
#include <openssl/rand.h>

namespace dstack::crypto
{

bool constant_time_equal(View a, View b)
{
    if (a.size() != b.size()) { return false; }
    return a.empty() || CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

void wipe(std::span<std::uint8_t> secret)
{
    if (!secret.empty()) { OPENSSL_cleanse(secret.data(), secret.size()); }
}

void fill_random(std::span<std::uint8_t> out)
{
    if (out.empty()) { return; }
    if (RAND_priv_bytes(out.data(), static_cast<int>(out.size())) != 1) { std::abort(); }
}

Bytes random_bytes(std::size_t count)
{
    Bytes out(count);
    fill_random(out);
    return out;
}

} // namespace dstack::crypto
