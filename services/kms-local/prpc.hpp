#pragma once
#include "shared/base/result.hpp"
#include "shared/crypto/bytes.hpp"
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

/// The wire of the KMS (dstack-protocol.md A.1 to A.4, E.2) as text in, text out.
namespace dstack::kms
{

/// The method of "/prpc/GetMeta" or "/prpc/KMS.GetMeta"; nullopt when the path is not of that form.
std::optional<std::string_view> method_of(std::string_view path);
/// GET, `?json`, `?json=true`, `?json=1`, or a JSON content type; everything else is upstream's binary mode.
bool is_json_mode(std::string_view http_method, std::string_view query, std::string_view content_type);

struct AppIdRequest
{
    crypto::Bytes app_id;
};
struct AppKeyRequest
{
    std::uint32_t api_version = 0;
    std::string vm_config;
};
/// Plain serde: a missing field has its default, an unknown one is ignored, a wrong type or null is an error; an empty
/// body is the empty request.
Result<AppIdRequest> parse_app_id_request(std::string_view json);
Result<AppKeyRequest> parse_app_key_request(std::string_view json);
/// A GET's query as the JSON of the same request: "app_id=ab&json" is {"app_id":"ab"}. Numbers become numbers.
std::string json_of_query(std::string_view query);

/// `os_image_hash` of a vm_config, or empty; an error when vm_config is not empty and no JSON object.
Result<std::string> image_hash_of(std::string_view vm_config);

/// {"error": "..."} with two spaces, as upstream prints it.
std::string error_json(std::string_view message);
/// The binary form: one string field with number 1.
std::string error_binary(std::string_view message);

struct Meta
{
    std::string ca_cert;
    std::string k256_pubkey;
    std::string gateway_app_id;
    std::string kms_contract_address;
    std::uint64_t chain_id = 0;
    std::string app_auth_implementation;
};
std::string encode(const Meta& meta);

struct TempCa
{
    std::string temp_ca_cert;
    std::string temp_ca_key;
    std::string ca_cert;
};
std::string encode(const TempCa& answer);

struct EnvPublicKey
{
    std::string public_key;
    std::string signature;
    std::uint64_t timestamp = 0;
    std::string signature_v1;
};
std::string encode(const EnvPublicKey& answer);

struct AppKeys
{
    std::string ca_cert;
    std::string disk_crypt_key;
    std::string env_crypt_key;
    std::string k256_key;
    std::string k256_signature;
    std::string gateway_app_id;
    std::string os_image_hash;
};
std::string encode(const AppKeys& answer);

} // namespace dstack::kms
