#pragma once
// Internal: owners for OpenSSL's objects. Not for inclusion outside this folder.
#include "shared/base/result.hpp"
#include "shared/crypto/p256.hpp"
#include <memory>
#include <openssl/bio.h>
#include <openssl/bn.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/x509v3.h>

namespace dstack::crypto
{

template <auto Free>
struct FreeWith
{
    template <class T>
    void operator()(T* object) const
    {
        Free(object);
    }
};
template <class T, auto Free>
using Owned = std::unique_ptr<T, FreeWith<Free>>;

using Bio = Owned<BIO, BIO_free_all>;
using BigNumber = Owned<BIGNUM, BN_clear_free>;
using Pkey = Owned<EVP_PKEY, EVP_PKEY_free>;
using PkeyContext = Owned<EVP_PKEY_CTX, EVP_PKEY_CTX_free>;
using X509Owned = Owned<X509, X509_free>;

/// "<what>: <OpenSSL's reason>"; empties OpenSSL's error queue.
Error openssl_error(std::string_view what);
Bio memory_bio(View bytes);
std::string bio_text(BIO* bio);
Pkey to_pkey(const P256Key& key);

} // namespace dstack::crypto
