#include "shared/crypto/kdf.hpp"
#include "shared/crypto/hash.hpp"
#include <algorithm>
#include <cstdlib>

namespace dstack::crypto
{

Bytes hkdf_sha256(View salt, View key, View info, std::size_t size)
{
    if (size > 255 * 32) { std::abort(); }
    auto prk = hmac_sha256(salt, key);
    Bytes out;
    Bytes block;
    for (std::uint8_t counter = 1; out.size() < size; ++counter)
    {
        append(block, info);
        block.push_back(counter);
        const auto digest = hmac_sha256(prk, block);
        block = copy(digest);
        append(out, View{digest}.first(std::min(digest.size(), size - out.size())));
    }
    wipe(prk);
    wipe(block);
    return out;
}

Bytes32 derive(View key, Context context)
{
    Bytes info;
    for (const auto part : context) { append(info, part); }
    auto bytes = hkdf_sha256(view("RATLS"), key, info, 32);
    Bytes32 out;
    std::copy_n(bytes.begin(), out.size(), out.begin());
    wipe(bytes);
    return out;
}

} // namespace dstack::crypto
