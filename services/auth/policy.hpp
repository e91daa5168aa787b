#pragma once
#include "services/auth/boot_info.hpp"
#include "shared/base/result.hpp"
#include "shared/crypto/bytes.hpp"
#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace dstack::auth
{

/// An empty list allows nothing; "any" must have been written down.
template <class T>
struct AllowList
{
    bool any = false;
    std::vector<T> values{}; ///< sorted
    bool contains(const T& value) const { return any || std::binary_search(values.begin(), values.end(), value); }
};

using Hash = crypto::Bytes32;
using AppId = crypto::Bytes20;

struct AppPolicy
{
    AllowList<Hash> compose_hashes;
    AllowList<std::string> devices; ///< lower-case hex
};

struct AppIdHash
{
    std::size_t operator()(const AppId& id) const
    {
        std::size_t out = 0;
        std::memcpy(&out, id.data(), sizeof out); // an id is the start of a SHA-256
        return out;
    }
};

/// The union of auth-simple's and upstream dstack-auth's documents (dstack-protocol.md, E.6 and I.2).
/// A list may also be written `{"any": true}`.
struct Policy
{
    AllowList<Hash> os_images;
    AllowList<std::string> tcb_statuses{false, {"UpToDate"}};
    AllowList<std::string> advisory_ids;
    std::string gateway_app_id;
    std::string kms_contract_address;
    std::uint64_t chain_id = 0;
    std::string app_implementation;
    AllowList<Hash> kms_aggregated_mrs;
    AllowList<std::string> kms_devices;
    std::unordered_map<AppId, AppPolicy, AppIdHash> apps;
};

/// All or nothing: a text with one mistake is no policy. The message names the place: "apps.<id>.composeHashes[2]:
/// ..."; for broken JSON it has line and column.
Result<Policy> parse_policy(std::string_view text);

/// Bytes of a lower-case hex text of exactly that length.
template <std::size_t N>
bool unhex(std::string_view hex, std::array<std::uint8_t, N>& out)
{
    if (hex.size() != 2 * N) { return false; }
    const auto digit = [](char c) { return static_cast<std::uint8_t>(c <= '9' ? c - '0' : c - 'a' + 10); };
    for (std::size_t i = 0; i < N; ++i)
    {
        out[i] = static_cast<std::uint8_t>(digit(hex[2 * i]) << 4 | digit(hex[2 * i + 1]));
    }
    return true;
}

} // namespace dstack::auth
