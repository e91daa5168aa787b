#include "services/kms-local/prpc.hpp"
#include "shared/crypto/hex.hpp"
#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>

namespace dstack::kms
{

namespace
{

using Json = nlohmann::ordered_json;

Error invalid(std::string message) { return {Errc::invalid_argument, std::move(message), {}, {}}; }

std::string dump(const Json& json, int indent = -1)
{
    return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

Result<Json> parse_request(std::string_view text)
{
    if (text.empty()) { return Json::object(); }
    auto json = Json::parse(text, nullptr, false);
    if (!json.is_object()) { return invalid("failed to decode the request: not a JSON object"); }
    return json;
}

Error wrong(std::string_view key, std::string_view kind)
{
    return invalid("failed to decode the request: " + std::string{key} + " is not " + std::string{kind});
}

Result<std::string> text_field(const Json& json, std::string_view key)
{
    const auto found = json.find(std::string{key});
    if (found == json.end()) { return std::string{}; }
    const auto* const value = found->get_ptr<const std::string*>();
    if (value == nullptr) { return wrong(key, "a string"); }
    return *value;
}

template <class Visit>
void each_parameter(std::string_view query, Visit visit)
{
    while (!query.empty())
    {
        const auto end = query.find('&');
        const auto pair = query.substr(0, end);
        const auto equals = pair.find('=');
        visit(pair.substr(0, equals), equals == std::string_view::npos ? std::string_view{} : pair.substr(equals + 1));
        query = end == std::string_view::npos ? std::string_view{} : query.substr(end + 1);
    }
}

bool is_json_type(std::string_view content_type)
{
    constexpr std::string_view wanted = "application/json";
    if (content_type.size() < wanted.size()) { return false; }
    for (std::size_t i = 0; i < wanted.size(); ++i)
    {
        const char c = content_type[i];
        if ((c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c) != wanted[i]) { return false; }
    }
    const auto rest = content_type.substr(wanted.size());
    return rest.empty() || rest.front() == ';' || rest.front() == ' ';
}

} // namespace

std::optional<std::string_view> method_of(std::string_view path)
{
    constexpr std::string_view mount = "/prpc/";
    constexpr std::string_view service = "KMS.";
    if (!path.starts_with(mount)) { return {}; }
    auto method = path.substr(mount.size());
    while (method.starts_with(service)) { method.remove_prefix(service.size()); } // repeatedly, as upstream trims it
    if (method.empty() || method.find('/') != std::string_view::npos) { return {}; }
    return method;
}

bool is_json_mode(std::string_view http_method, std::string_view query, std::string_view content_type)
{
    bool asked = http_method == "GET" || http_method == "HEAD" || is_json_type(content_type);
    each_parameter(query, [&asked](std::string_view key, std::string_view value)
                   { asked = asked || (key == "json" && (value.empty() || value == "true" || value == "1")); });
    return asked;
}

Result<AppIdRequest> parse_app_id_request(std::string_view text)
{
    const auto json = parse_request(text);
    if (!json) { return json.error(); }
    const auto hex = text_field(*json, "app_id");
    if (!hex) { return hex.error(); }
    std::string_view digits = *hex;
    while (digits.starts_with("0x")) { digits.remove_prefix(2); }
    auto bytes = crypto::from_hex(digits);
    if (!bytes) { return std::move(bytes).error().within("failed to decode the request: app_id"); }
    return AppIdRequest{std::move(*bytes)};
}

Result<AppKeyRequest> parse_app_key_request(std::string_view text)
{
    const auto json = parse_request(text);
    if (!json) { return json.error(); }
    AppKeyRequest out;
    if (const auto found = json->find("api_version"); found != json->end())
    {
        const auto* const value = found->get_ptr<const Json::number_unsigned_t*>();
        if (value == nullptr || *value > std::numeric_limits<std::uint32_t>::max())
        {
            return wrong("api_version", "a number");
        }
        out.api_version = static_cast<std::uint32_t>(*value);
    }
    auto vm_config = text_field(*json, "vm_config");
    if (!vm_config) { return std::move(vm_config).error(); }
    out.vm_config = std::move(*vm_config);
    return out;
}

std::string json_of_query(std::string_view query)
{
    Json out = Json::object();
    each_parameter(query,
                   [&out](std::string_view key, std::string_view value)
                   {
                       if (key.empty() || key == "json") { return; }
                       std::uint64_t number = 0;
                       const auto* const end = value.data() + value.size();
                       const auto parsed = std::from_chars(value.data(), end, number);
                       const bool numeric = key == "api_version" && parsed.ec == std::errc{} && parsed.ptr == end;
                       if (numeric) { out[std::string{key}] = number; }
                       else { out[std::string{key}] = value; }
                   });
    return dump(out);
}

Result<std::string> image_hash_of(std::string_view vm_config)
{
    if (vm_config.empty()) { return std::string{}; }
    const auto json = Json::parse(vm_config, nullptr, false);
    if (!json.is_object()) { return invalid("vm_config is not a JSON object"); }
    const auto hex = text_field(json, "os_image_hash");
    if (!hex) { return invalid("vm_config: os_image_hash is not a string"); }
    if (hex->empty()) { return std::string{}; }
    const auto bytes = crypto::from_hex(*hex, 32);
    if (!bytes) { return Error{bytes.error()}.within("vm_config: os_image_hash"); }
    return crypto::to_hex(*bytes);
}

std::string error_json(std::string_view message) { return dump(Json{{"error", message}}, 2); }

std::string error_binary(std::string_view message)
{
    std::string out{'\x0a'};
    for (auto size = message.size();; size >>= 7U)
    {
        out += static_cast<char>((size & 0x7fU) | (size > 0x7f ? 0x80U : 0U));
        if (size <= 0x7f) { break; }
    }
    out += message;
    return out;
}

std::string encode(const Meta& m)
{
    return dump({{"ca_cert", m.ca_cert},
                 {"allow_any_upgrade", false},
                 {"k256_pubkey", m.k256_pubkey},
                 {"bootstrap_info", nullptr},
                 {"is_dev", true},
                 {"gateway_app_id", m.gateway_app_id},
                 {"kms_contract_address", m.kms_contract_address},
                 {"chain_id", m.chain_id},
                 {"app_auth_implementation", m.app_auth_implementation},
                 {"simulated", true}}); // ours: readers ignore what they do not know
}

std::string encode(const TempCa& t)
{
    return dump({{"temp_ca_cert", t.temp_ca_cert}, {"temp_ca_key", t.temp_ca_key}, {"ca_cert", t.ca_cert}});
}

std::string encode(const EnvPublicKey& k)
{
    return dump({{"public_key", k.public_key},
                 {"signature", k.signature},
                 {"timestamp", k.timestamp},
                 {"signature_v1", k.signature_v1}});
}

std::string encode(const AppKeys& k)
{
    return dump({{"ca_cert", k.ca_cert},
                 {"disk_crypt_key", k.disk_crypt_key},
                 {"env_crypt_key", k.env_crypt_key},
                 {"k256_key", k.k256_key},
                 {"k256_signature", k.k256_signature},
                 {"tproxy_app_id", k.gateway_app_id},
                 {"gateway_app_id", k.gateway_app_id},
                 {"os_image_hash", k.os_image_hash}});
}

} // namespace dstack::kms
