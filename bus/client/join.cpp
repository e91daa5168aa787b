#include "bus/client/join.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/state/files.hpp"
#include <algorithm>
#include <nlohmann/json.hpp>
#include <sys/stat.h>
#include <unistd.h>

namespace dstack::bus
{

namespace
{
constexpr std::string_view prefix = "dstack-join-v1.";
constexpr std::size_t max_bytes = 4096;
constexpr std::size_t check_bytes = 4;

std::string base64url(crypto::View bytes)
{
    std::string out = crypto::to_base64(bytes);
    std::replace(out.begin(), out.end(), '+', '-');
    std::replace(out.begin(), out.end(), '/', '_');
    out.erase(out.find_last_not_of('=') + 1);
    return out;
}

Result<crypto::Bytes> from_base64url(std::string_view text)
{
    std::string standard{text};
    if (standard.find_first_of("+/=") != std::string::npos) { return Error{Errc::invalid_argument, "not base64url", {}, {}}; }
    std::replace(standard.begin(), standard.end(), '-', '+');
    std::replace(standard.begin(), standard.end(), '_', '/');
    standard.append((4 - standard.size() % 4) % 4, '=');
    return crypto::from_base64(standard);
}

Error damaged()
{
    return Error{Errc::invalid_argument, "the join string is damaged: cut short, or not copied as a whole", "copy it again, or have a new one made: `dstackup token create`", {}};
}

std::string_view trimmed(std::string_view text)
{
    constexpr std::string_view blank = " \t\r\n";
    const auto begin = text.find_first_not_of(blank);
    if (begin == std::string_view::npos) { return {}; }
    return text.substr(begin, text.find_last_not_of(blank) - begin + 1);
}
} // namespace

std::string key_fingerprint(const std::array<std::uint8_t, 32>& public_key)
{
    return crypto::to_hex(crypto::sha256(crypto::View{public_key})).substr(0, 16);
}

std::string to_join_string(const Join& join)
{
    const nlohmann::ordered_json json{{"name", join.name},
                                      {"address", join.endpoint.text()},
                                      {"server_key", crypto::to_hex(join.server_key)},
                                      {"secret_key", crypto::to_hex(join.secret_key)},
                                      {"expires_ms", join.expires_ms}};
    crypto::Bytes bytes = crypto::copy(crypto::view(json.dump()));
    const crypto::Bytes32 check = crypto::sha256(crypto::View{bytes});
    crypto::append(bytes, crypto::View{check}.first(check_bytes));
    return std::string{prefix} + base64url(bytes);
}

Result<Join> parse_join_string(std::string_view text)
{
    const std::string_view word = trimmed(text);
    if (!word.starts_with(prefix))
    {
        return Error{Errc::invalid_argument, "this is no join string", "it begins with " + std::string{prefix} + " and comes from `dstackup token create`", {}};
    }
    if (word.size() > max_bytes) { return damaged(); }
    const auto bytes = from_base64url(word.substr(prefix.size()));
    if (!bytes || bytes->size() <= check_bytes) { return damaged(); }
    const crypto::View all{*bytes};
    const crypto::View body = all.first(all.size() - check_bytes);
    const crypto::Bytes32 check = crypto::sha256(body);
    if (!crypto::constant_time_equal(all.last(check_bytes), crypto::View{check}.first(check_bytes))) { return damaged(); }
    const auto json = nlohmann::json::parse(body.begin(), body.end(), nullptr, false);
    const auto text_of = [&json](const char* key) -> std::string
    {
        if (!json.is_object()) { return {}; }
        const auto found = json.find(key);
        return found != json.end() && found->is_string() ? *found->get_ptr<const std::string*>() : std::string{};
    };
    auto endpoint = parse_endpoint(text_of("address"));
    auto server = crypto::from_hex_fixed<32>(text_of("server_key"));
    auto secret = crypto::from_hex_fixed<32>(text_of("secret_key"));
    if (!endpoint || !server || !secret) { return damaged(); }
    Join out{text_of("name"), std::move(*endpoint), *server, *secret, 0};
    const auto expires = json.find("expires_ms");
    if (expires != json.end() && expires->is_number_unsigned()) { out.expires_ms = *expires->get_ptr<const std::uint64_t*>(); }
    return out;
}

Result<Join> read_token_file(const std::string& path)
{
    std::string text;
    if (path == "-")
    {
        std::array<char, max_bytes + 1> buffer{};
        for (ssize_t got = 0; text.size() <= max_bytes && (got = ::read(STDIN_FILENO, buffer.data(), buffer.size())) > 0;)
        {
            text.append(buffer.data(), static_cast<std::size_t>(got));
        }
    }
    else
    {
        struct stat facts = {};
        if (::stat(path.c_str(), &facts) == 0 && S_ISREG(facts.st_mode) && (facts.st_mode & 077) != 0)
        {
            return Error{Errc::permission_denied, "token file " + path + ": others than its owner may read it", "chmod 600 " + path, {}};
        }
        auto read = state::read_file(path, max_bytes);
        if (!read) { return std::move(read).error().within("token file"); }
        text = std::move(*read);
    }
    auto join = parse_join_string(text);
    if (!join) { return std::move(join).error().within("token file " + path); }
    return join;
}

} // namespace dstack::bus
