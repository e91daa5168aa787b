#include "shared/crypto/openssl.hpp"
#include <openssl/err.h>

namespace dstack::crypto
{

Error openssl_error(std::string_view what)
{
    const auto code = ERR_get_error();
    const char* reason = code != 0 ? ERR_reason_error_string(code) : nullptr;
    ERR_clear_error();
    return {Errc::invalid_argument, std::string{what} + ": " + (reason != nullptr ? reason : "refused"), {}, {}};
}

Bio memory_bio(View bytes) { return Bio{BIO_new_mem_buf(bytes.data(), static_cast<int>(bytes.size()))}; }

std::string bio_text(BIO* bio)
{
    char* data = nullptr;
    const long size = BIO_get_mem_data(bio, &data);
    return size > 0 ? std::string{data, static_cast<std::size_t>(size)} : std::string{};
}

Pkey to_pkey(const P256Key& key)
{
    auto der = key.pkcs8_der();
    const unsigned char* at = der.data();
    Pkey pkey{d2i_AutoPrivateKey(nullptr, &at, static_cast<long>(der.size()))};
    wipe(der);
    if (!pkey) { std::abort(); } // a P256Key is valid by construction
    return pkey;
}

} // namespace dstack::crypto
