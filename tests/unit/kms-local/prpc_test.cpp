#include "services/kms-local/prpc.hpp"
#include "tests/catch.hpp"
#include <nlohmann/json.hpp>

using namespace dstack::kms;

TEST_CASE("the method is the one segment behind /prpc/, without KMS.")
{
    struct Case
    {
        std::string_view path;
        std::string_view method; ///< empty: not found
    };
    const Case cases[] = {{"/prpc/GetMeta", "GetMeta"},
                          {"/prpc/KMS.GetMeta", "GetMeta"},
                          {"/prpc/KMS.KMS.GetMeta", "GetMeta"},
                          {"/prpc/Kms.GetMeta", "Kms.GetMeta"},
                          {"/prpc/", ""},
                          {"/prpc/KMS.", ""},
                          {"/prpc", ""},
                          {"/prpc/a/b", ""},
                          {"/GetMeta", ""},
                          {"/api/GetMeta", ""}};
    for (const auto& c : cases)
    {
        INFO(c.path);
        CHECK(method_of(c.path).value_or("") == c.method);
    }
}

TEST_CASE("JSON mode is asked for as upstream's clients ask")
{
    struct Case
    {
        std::string_view method, query, type;
        bool json;
    };
    const Case cases[] = {{"POST", "", "", false},
                          {"POST", "json", "", true},
                          {"POST", "json=", "", true},
                          {"POST", "json=true", "", true},
                          {"POST", "a=b&json=1", "", true},
                          {"POST", "json=0", "", false},
                          {"POST", "json=yes", "", false},
                          {"POST", "jsonx", "", false},
                          {"POST", "", "application/json", true},
                          {"POST", "", "Application/JSON; charset=utf-8", true},
                          {"POST", "", "application/jsonlines", false},
                          {"POST", "", "application/octet-stream", false},
                          {"GET", "", "", true}};
    for (const auto& c : cases)
    {
        INFO(c.method << ' ' << c.query << ' ' << c.type);
        CHECK(is_json_mode(c.method, c.query, c.type) == c.json);
    }
}

TEST_CASE("requests are read as serde reads them")
{
    const auto key = parse_app_key_request(R"({"api_version":1,"vm_config":"{}","unknown":[1]})");
    REQUIRE(key);
    CHECK(key->api_version == 1);
    CHECK(key->vm_config == "{}");
    const auto empty = parse_app_key_request("");
    REQUIRE(empty);
    CHECK(empty->api_version == 0);
    CHECK(empty->vm_config.empty());
    for (const auto* bad :
         {"[]", "null", "{", R"({"api_version":null})", R"({"api_version":-1})", R"({"api_version":1.5})",
          R"({"api_version":4294967296})", R"({"api_version":"1"})", R"({"vm_config":null})", R"({"vm_config":{}})"})
    {
        INFO(bad);
        CHECK_FALSE(parse_app_key_request(bad));
    }
    for (const auto* good : {R"({"app_id":"aABb"})", R"({"app_id":"0xaabb"})", R"({"app_id":"0x0xaabb"})"})
    {
        const auto app = parse_app_id_request(good);
        REQUIRE(app);
        CHECK(app->app_id == dstack::crypto::Bytes{0xaa, 0xbb});
    }
    for (const auto* bad : {R"({"app_id":"abc"})", R"({"app_id":"zz"})", R"({"app_id":7})"})
    {
        INFO(bad);
        CHECK_FALSE(parse_app_id_request(bad));
    }
}

TEST_CASE("a GET's query is the request")
{
    CHECK(json_of_query("app_id=aabb&json") == R"({"app_id":"aabb"})");
    CHECK(json_of_query("api_version=1&vm_config=") == R"({"api_version":1,"vm_config":""})");
    CHECK(json_of_query("api_version=x") == R"({"api_version":"x"})");
    CHECK(json_of_query("") == "{}");
}

TEST_CASE("vm_config tells its image, or that it tells none")
{
    const std::string hash(64, 'a');
    CHECK(*image_hash_of("") == "");
    CHECK(*image_hash_of("{}") == "");
    CHECK(*image_hash_of(R"({"os_image_hash":""})") == "");
    CHECK(*image_hash_of(R"({"os_image_hash":"0x)" + std::string(64, 'A') + R"("})") == hash);
    for (const auto* bad : {"[", "7", R"({"os_image_hash":1})", R"({"os_image_hash":"aa"})"})
    {
        INFO(bad);
        CHECK_FALSE(image_hash_of(bad));
    }
}

TEST_CASE("errors look like upstream's")
{
    CHECK(error_json("no \"way\"") == "{\n  \"error\": \"no \\\"way\\\"\"\n}");
    CHECK(error_binary("abc") == "\x0a\x03"
                                 "abc");
    const std::string long_text(300, 'x');
    CHECK(error_binary(long_text) == "\x0a\xac\x02" + long_text);
}

TEST_CASE("answers have upstream's keys in upstream's order")
{
    const auto keys = [](const std::string& text)
    {
        std::string out;
        const auto json = nlohmann::ordered_json::parse(text);
        for (const auto& [key, value] : json.items()) { out += key + " "; }
        return out;
    };
    CHECK(keys(encode(Meta{})) ==
          "ca_cert allow_any_upgrade k256_pubkey bootstrap_info is_dev gateway_app_id kms_contract_address "
          "chain_id app_auth_implementation simulated ");
    CHECK(keys(encode(TempCa{})) == "temp_ca_cert temp_ca_key ca_cert ");
    CHECK(keys(encode(EnvPublicKey{})) == "public_key signature timestamp signature_v1 ");
    CHECK(keys(encode(AppKeys{})) ==
          "ca_cert disk_crypt_key env_crypt_key k256_key k256_signature tproxy_app_id gateway_app_id "
          "os_image_hash ");
    CHECK(nlohmann::json::parse(encode(Meta{}))["simulated"] == true);
}
