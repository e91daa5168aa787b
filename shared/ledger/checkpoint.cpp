#include "shared/ledger/checkpoint.hpp"
#include "shared/base/time.hpp"
#include "shared/crypto/curve25519.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/ledger/files.hpp"
#include "shared/state/files.hpp"
#include <algorithm>
#include <nlohmann/json.hpp>
#include <sys/stat.h>

namespace dstack::ledger
{

namespace
{

using nlohmann::json;

constexpr std::string_view type = "dstack.ledger_checkpoint/v1";
constexpr std::string_view signature_key = ",\"signature\":\"";
constexpr std::size_t signature_size = signature_key.size() + 128 + 2;
// RFC 8410: what is before the 32 bytes.
constexpr std::string_view seed_prefix = "302e020100300506032b657004220420";
constexpr std::string_view public_prefix = "302a300506032b6570032100";

Error broken(std::string why) { return Error{Errc::data_loss, std::move(why), {}, {}}; }

std::string pem_of(std::string_view label, std::string_view prefix, const crypto::Bytes32& bytes)
{
    crypto::Bytes der = *crypto::from_hex(prefix);
    crypto::append(der, bytes);
    return "-----BEGIN " + std::string{label} + "-----\n" + crypto::to_base64(der) + "\n-----END " + std::string{label} + "-----\n";
}

Result<crypto::Bytes32> from_pem(std::string_view pem, std::string_view label, std::string_view prefix)
{
    const std::string begin = "-----BEGIN " + std::string{label} + "-----";
    const std::string end = "-----END " + std::string{label} + "-----";
    const auto from = pem.find(begin);
    const auto to = pem.find(end);
    const Error wrong{Errc::invalid_argument, "no Ed25519 " + std::string{label} + " in PEM", {}, {}};
    if (from == std::string_view::npos || to == std::string_view::npos || to < from) { return wrong; }
    std::string text{pem.substr(from + begin.size(), to - from - begin.size())};
    std::erase_if(text, [](char c) { return c == '\n' || c == '\r' || c == ' '; });
    const auto der = crypto::from_base64(text);
    const crypto::Bytes head = *crypto::from_hex(prefix);
    if (!der || der->size() != head.size() + 32 || !std::equal(head.begin(), head.end(), der->begin())) { return wrong; }
    crypto::Bytes32 out{};
    std::copy(der->begin() + static_cast<std::ptrdiff_t>(head.size()), der->end(), out.begin());
    return out;
}

template <class T>
bool take(const json& object, const char* key, T& out)
{
    const auto found = object.find(key);
    if (found == object.end()) { return false; }
    if constexpr (std::is_same_v<T, std::string>)
    {
        const auto* text = found->get_ptr<const std::string*>();
        if (text == nullptr) { return false; }
        out = *text;
    }
    else
    {
        const auto* number = found->get_ptr<const json::number_unsigned_t*>();
        if (number == nullptr) { return false; }
        out = *number;
    }
    return true;
}

} // namespace

std::string encode_checkpoint(const Checkpoint& checkpoint, const crypto::Bytes32& seed)
{
    std::string out = "{\"type\":\"" + std::string{type} + "\",\"number\":" + std::to_string(checkpoint.number) +
                      ",\"time\":\"" + rfc3339(checkpoint.time_ms) + "\",\"records\":" + std::to_string(checkpoint.records) +
                      ",\"hash\":\"" + checkpoint.hash + "\",\"ledger\":\"" + checkpoint.ledger +
                      "\",\"segment\":" + std::to_string(checkpoint.segment) +
                      ",\"offset\":" + std::to_string(checkpoint.offset) + ",\"prev\":\"" + checkpoint.previous + "\"";
    const auto signature = crypto::ed25519_sign(seed, crypto::view(out));
    out += signature_key;
    out += crypto::to_hex(signature);
    out += "\"}";
    return out;
}

Result<Checkpoint> read_checkpoint(std::string_view line, const crypto::Bytes32& public_key)
{
    const auto at = line.size() < signature_size ? 0 : line.size() - signature_size;
    const std::string_view last = line.substr(at);
    if (at == 0 || !last.starts_with(signature_key) || !last.ends_with("\"}")) { return broken("it has no signature"); }
    const auto signature = crypto::from_hex_fixed<64>(last.substr(signature_key.size(), 128));
    if (!signature || !crypto::ed25519_verify(public_key, crypto::view(line.substr(0, at)), *signature))
    {
        return broken("its signature is not by this key");
    }
    const json object = json::parse(line, nullptr, false);
    Checkpoint out;
    std::string word;
    std::string time;
    const bool whole = object.is_object() && take(object, "type", word) && word == type && take(object, "number", out.number) &&
                       take(object, "time", time) && take(object, "records", out.records) && take(object, "hash", out.hash) &&
                       take(object, "ledger", out.ledger) && take(object, "segment", out.segment) &&
                       take(object, "offset", out.offset) && take(object, "prev", out.previous);
    const auto time_ms = unix_ms_from_rfc3339(time);
    if (!whole || !time_ms) { return broken("it is no checkpoint"); }
    out.time_ms = *time_ms;
    return out;
}

std::string seed_pem(const crypto::Bytes32& seed) { return pem_of("PRIVATE KEY", seed_prefix, seed); }
std::string public_pem(const crypto::Bytes32& public_key) { return pem_of("PUBLIC KEY", public_prefix, public_key); }
Result<crypto::Bytes32> seed_from_pem(std::string_view pem) { return from_pem(pem, "PRIVATE KEY", seed_prefix); }
Result<crypto::Bytes32> public_from_pem(std::string_view pem) { return from_pem(pem, "PUBLIC KEY", public_prefix); }

Result<Key> load_key(const std::string& directory, bool may_make)
{
    const std::string path = directory + "/" + std::string{secret_name};
    const std::string public_path = directory + "/" + std::string{public_name};
    Key out;
    auto text = state::read_file(path, 4096);
    if (text)
    {
        struct stat facts = {};
        if (::stat(path.c_str(), &facts) == 0 && (facts.st_mode & 077) != 0)
        {
            return Error{Errc::permission_denied, path + ": others may read the key that signs checkpoints", "chmod 600 " + path, {}};
        }
        auto seed = seed_from_pem(*text);
        if (!seed) { return std::move(seed).error().within(path); }
        out.seed = *seed;
    }
    else
    {
        if (text.error().code != Errc::not_found) { return std::move(text).error(); }
        if (!may_make)
        {
            return Error{Errc::data_loss, path + ": the key that signs checkpoints is missing, and there are checkpoints that it signed",
                         "bring it back from a backup; or keep the ledger as evidence, move it away, and start with a new one", {}};
        }
        out.seed = crypto::random_fixed<32>();
        auto written = state::write_file_atomic(path, seed_pem(out.seed), 0600);
        if (!written) { return std::move(written).error(); }
    }
    out.public_key = crypto::ed25519_public(out.seed);
    const std::string pem = public_pem(out.public_key);
    const auto beside = state::read_file(public_path, 4096);
    if (!beside || *beside != pem)
    {
        auto written = state::write_file_atomic(public_path, pem, 0644);
        if (!written) { return std::move(written).error(); }
    }
    return out;
}

} // namespace dstack::ledger
