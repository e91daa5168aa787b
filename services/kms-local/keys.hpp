#pragma once
#include "shared/base/result.hpp"
#include "shared/crypto/k256.hpp"
#include "shared/crypto/p256.hpp"
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::kms
{

/// Everything that is made once and must never be made again.
struct RootKeys
{
    crypto::P256Key ca_key;
    std::string ca_cert_pem; ///< "Dstack KMS CA"
    crypto::P256Key temp_ca_key;
    std::string temp_ca_cert_pem; ///< "Dstack Client Temp CA"; its key is public by design: it only names a connection
    crypto::Bytes32 k256_key{};
};

/// By what a KMS is known to others.
struct Identity
{
    std::string ca_fingerprint; ///< SHA-256 of the CA certificate, hex
    std::string k256_pubkey;    ///< compressed, hex

    bool operator==(const Identity&) const = default;
};

Result<RootKeys> generate_root_keys();
Result<Identity> identity_of(const RootKeys& keys);

/// File name -> content, with the names of upstream's `core.cert_dir`, so that the directory can move to an upstream
/// KMS.
using KeyFiles = std::map<std::string, std::string>;
KeyFiles encode(const RootKeys& keys);
/// Every file must be there, parse, and belong to the others.
Result<RootKeys> decode(const KeyFiles& files);
/// The names that `decode` needs.
const std::vector<std::string>& key_file_names();

std::string encode(const Identity& identity);
Result<Identity> decode_identity(std::string_view json);

/// What is found in the state directory, and what follows from it.
struct Found
{
    bool keys_dir = false; ///< there is a directory of keys, complete or not
    bool identity = false; ///< an identity was recorded
};
enum class Step
{
    bootstrap, ///< nothing was ever here
    load,      ///< keys are here: they must be complete and the recorded ones
    refuse,    ///< an identity was recorded and its keys are gone
};
Step decide(Found found);

} // namespace dstack::kms
