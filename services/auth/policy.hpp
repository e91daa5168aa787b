#pragma once
#include "services/auth/boot_info.hpp"
#include "shared/base/result.hpp"
#include "shared/crypto/bytes.hpp"
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace dstack::auth
{

/// An entry that ends: `{"value": ..., "expires": "2026-12-24T18:00:00Z", "reason": ...}`.
template <class T>
struct Temporary
{
    T value{};
    std::uint64_t expires_ms = 0; ///< unix time; from then on it allows nothing
    std::string reason;           ///< why it was made
    bool operator<(const Temporary& other) const
    {
        return value != other.value ? value < other.value : expires_ms < other.expires_ms;
    }
};

/// What of a list ends some day.
template <class T>
struct Limited
{
    std::vector<Temporary<T>> entries{}; ///< sorted
    std::uint64_t any_until_ms = 0;      ///< `{"any": true, "expires": ...}`; 0: not so
    std::string any_reason{};
};

/// An empty list allows nothing; "any" must have been written down.
template <class T>
struct AllowList
{
    bool any = false;
    std::vector<T> values{};                       ///< without an end, sorted
    std::shared_ptr<const Limited<T>> limited{}; ///< null: nothing in it ends

    /// Without an end.
    bool contains(const T& value) const { return any || std::binary_search(values.begin(), values.end(), value); }
    /// Of several temporary entries for it, the one that ends last; nullptr when there is none.
    const Temporary<T>* temporary(const T& value) const
    {
        if (!limited) { return nullptr; }
        const auto after = [](const T& v, const Temporary<T>& entry) { return v < entry.value; };
        const auto end = std::upper_bound(limited->entries.begin(), limited->entries.end(), value, after);
        return end != limited->entries.begin() && std::prev(end)->value == value ? &*std::prev(end) : nullptr;
    }
    bool allows(const T& value, std::uint64_t now_ms) const
    {
        if (contains(value)) { return true; }
        if (!limited) { return false; }
        const Temporary<T>* entry = temporary(value);
        return now_ms < limited->any_until_ms || (entry != nullptr && now_ms < entry->expires_ms);
    }
    bool empty() const { return !any && values.empty() && !limited; }
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
        // An id is the start of a SHA-256, but nothing makes whoever writes the file keep to that: all of it counts.
        std::array<std::uint64_t, 3> words{};
        std::memcpy(words.data(), id.data(), id.size());
        std::uint64_t out = 0;
        for (const std::uint64_t word : words)
        {
            out = (out ^ word) * 0x9e3779b97f4a7c15;
            out ^= out >> 32;
        }
        return static_cast<std::size_t>(out);
    }
};

/// The union of auth-simple's and upstream dstack-auth's documents (dstack-protocol.md, E.6 and I.2).
/// A list holds plain values and objects with "value", "expires" and "reason"; or it is written `{"any": true}`.
/// `tcbGrace` (`{"status": "OutOfDate", "until": ...}`, or several in an array) is an entry of tcb_statuses that ends.
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
/// ... (line 7)"; for broken JSON it has line and column.
Result<Policy> parse_policy(std::string_view text);

/// RFC 3339 with Z or an offset, with or without fractions of a second: "2026-12-24T18:00:00+01:00". Unix time in ms.
std::optional<std::uint64_t> parse_time(std::string_view text);

/// Bytes of a lower-case hex text of exactly that length, which was checked before.
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
