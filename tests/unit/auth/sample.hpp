#pragma once
#include <string>

// What the tests of dstack-auth boot.
namespace sample
{

inline std::string hex(char digit, std::size_t digits = 64) { return std::string(digits, digit); }

/// A body as the KMS posts it; `drop` leaves one key out, `key`/`value` (a JSON literal) replaces one.
inline std::string body(const std::string& key = "", const std::string& value = "", const std::string& drop = "")
{
    const std::pair<std::string, std::string> members[] = {
        {"teeVariant", "\"dstack-tdx\""},
        {"mrAggregated", "\"" + hex('a') + "\""},
        {"osImageHash", "\"" + hex('b') + "\""},
        {"mrSystem", "\"" + hex('c') + "\""},
        {"appId", "\"" + hex('1', 40) + "\""},
        {"composeHash", "\"" + hex('d') + "\""},
        {"instanceId", "\"" + hex('2', 40) + "\""},
        {"deviceId", "\"" + hex('e') + "\""},
        {"keyProviderInfo", "\"\""},
        {"tcbStatus", "\"UpToDate\""},
        {"advisoryIds", "[]"},
    };
    std::string out = "{";
    for (const auto& [name, usual] : members)
    {
        if (name == drop) { continue; }
        out += out.size() > 1 ? "," : "";
        out += "\"" + name + "\":" + (name == key ? value : usual);
    }
    return out + "}";
}

/// Allows `body()` as an app and as a KMS.
inline std::string policy()
{
    return R"({"osImages":["0x)" + hex('b') + R"("],"gatewayAppId":"gw","kms":{"mrAggregated":[")" + hex('a') +
           R"("],"devices":[")" + hex('e') + R"("]},"apps":{")" + hex('1', 40) + R"(":{"composeHashes":[")" + hex('D') +
           R"("],"allowAnyDevice":true}}})";
}

} // namespace sample
