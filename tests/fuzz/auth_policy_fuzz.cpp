// Hostile text as a policy file: whatever it is, it is a policy that JSON's own reader accepts too, or it has a complaint; and
// our own changes of a policy give a policy that says what was asked for.
#include "services/auth/policy_check.hpp"
#include "services/auth/policy_edit.hpp"
#include "services/auth/policy.hpp"
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>

using namespace dstack::auth;

namespace
{

void check(bool holds)
{
    if (!holds) { std::abort(); }
}

bool is_short_ascii(const std::string& text)
{
    return text.size() < 4096 && std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size)
{
    if (size > 16 * 1024) { return 0; }
    const std::string_view text{reinterpret_cast<const char*>(data), size};
    const auto policy = parse_policy(text);
    if (!policy)
    {
        check(!policy.error().message.empty() && is_short_ascii(policy.error().message));
        check(!check_policy(text, 1).error.empty());
        return 0;
    }
    check(nlohmann::json::accept(text.begin(), text.end()));
    const auto report = check_policy(text, 1'800'000'000'000);
    check(report.error.empty() && report.apps == policy->apps.size());
    check(nlohmann::json::accept(report_json(report)));
    const std::string app(40, '7');
    const std::string hash(64, 'a');
    AppId id{};
    Hash bytes{};
    unhex(app, id);
    unhex(hash, bytes);
    const auto allowed = allow_app(text, app, hash);
    if (!allowed) { return 0; } // "any" for a while cannot be added to
    const auto after = parse_policy(*allowed ? std::string_view{**allowed} : text);
    check(after && after->apps.contains(id) && after->apps.at(id).compose_hashes.contains(bytes));
    const auto revoked = revoke_app(*allowed ? std::string_view{**allowed} : text, app, "");
    check(revoked && *revoked);
    const auto gone = parse_policy(**revoked);
    check(gone && !gone->apps.contains(id));
    return 0;
}
