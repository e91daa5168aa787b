#include "bus/broker/tokens.hpp"
#include "shared/base/time.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include <algorithm>
#include <nlohmann/json.hpp>

namespace dstack::bus
{

namespace
{
constexpr std::string_view schema_name = "dstack.bus-tokens/v1";

bool is_name(std::string_view name)
{
    return !name.empty() && name.size() <= 64 &&
           std::all_of(name.begin(), name.end(),
                       [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-'; });
}

/// What must hold for a token wherever it comes from; empty: it does.
std::string_view mistake(const Token& token)
{
    if (!is_name(token.name)) { return "a name is 1 to 64 of a-z 0-9 . _ -"; }
    if (token.role == schema::Role::none) { return "a role is viewer, operator or admin"; }
    if (!crypto::from_hex_fixed<32>(token.public_key) || token.public_key.starts_with("0x")) { return "a key is 64 hex digits"; }
    return {};
}
} // namespace

std::string Token::id() const
{
    const auto key = crypto::from_hex(public_key);
    return key ? crypto::to_hex(crypto::sha256(crypto::View{*key})).substr(0, 16) : std::string{};
}

schema::Role role_from(std::string_view name)
{
    for (const auto role : {schema::Role::viewer, schema::Role::operator_, schema::Role::admin})
    {
        if (schema::to_string(role) == name) { return role; }
    }
    return schema::Role::none;
}

void Tokens::put(Token token)
{
    if (const Token* before = by_name(token.name)) { names_.erase(before->id()); }
    names_.insert_or_assign(token.id(), token.name);
    std::string name = token.name;
    by_name_.insert_or_assign(std::move(name), std::move(token));
}

Result<Tokens> Tokens::parse(std::string_view text)
{
    const auto bad = [](std::string_view why) { return Error{Errc::data_loss, "damaged: " + std::string{why}, "put back the last good copy, or remove it and create the tokens anew", {}}; };
    const auto json = nlohmann::json::parse(text, nullptr, false);
    if (!json.is_object()) { return bad("not a JSON object"); }
    const auto schema = json.find("schema");
    if (schema == json.end() || *schema != schema_name) { return bad("not of schema " + std::string{schema_name}); }
    const auto list = json.find("tokens");
    if (list == json.end() || !list->is_array() || list->size() > max_tokens) { return bad("no list of tokens"); }
    Tokens out;
    for (const auto& entry : *list)
    {
        if (!entry.is_object()) { return bad("a token that is no object"); }
        const auto text_of = [&entry](const char* key) -> std::string
        {
            const auto found = entry.find(key);
            return found != entry.end() && found->is_string() ? *found->get_ptr<const std::string*>() : std::string{};
        };
        bool times = true;
        const auto time_of = [&](const char* key) -> std::uint64_t
        {
            const auto found = entry.find(key);
            times = times && found != entry.end() && found->is_number_unsigned();
            return times ? *found->get_ptr<const std::uint64_t*>() : 0;
        };
        Token token{text_of("name"), role_from(text_of("role")), text_of("public_key"), time_of("created_ms"), time_of("expires_ms"), time_of("revoked_ms"), text_of("by")};
        if (const auto wrong = mistake(token); !wrong.empty()) { return bad(wrong); }
        if (!times) { return bad("a token without its times"); }
        if (out.by_name(token.name) != nullptr || out.by_id(token.id()) != nullptr) { return bad("a token twice"); }
        out.put(std::move(token));
    }
    return out;
}

std::string Tokens::to_text() const
{
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const auto& [name, token] : by_name_)
    {
        list.push_back({{"name", name},
                        {"role", schema::to_string(token.role)},
                        {"public_key", token.public_key},
                        {"created_ms", token.created_ms},
                        {"expires_ms", token.expires_ms},
                        {"revoked_ms", token.revoked_ms},
                        {"by", token.by}});
    }
    const nlohmann::ordered_json json{{"schema", schema_name}, {"tokens", std::move(list)}};
    return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

Result<bool> Tokens::create(Token token, std::uint64_t now_ms)
{
    if (const auto wrong = mistake(token); !wrong.empty()) { return Error{Errc::invalid_argument, "token: " + std::string{wrong}, {}, {}}; }
    if (token.expires_ms <= now_ms || token.expires_ms > now_ms + max_lifetime_ms)
    {
        return Error{Errc::invalid_argument, "token " + token.name + ": its end must be ahead, and not by more than ten years", {}, {}};
    }
    token.created_ms = now_ms;
    token.revoked_ms = 0;
    const std::string id = token.id();
    const Token* same = by_name(token.name);
    if (same != nullptr && state(*same, now_ms) == "active")
    {
        if (same->id() == id && same->role == token.role) { return true; }
        return Error{Errc::already_exists, "there is an active token " + token.name, "choose another name, or first: dstackup token revoke " + token.name, {}};
    }
    if (by_id(id) != nullptr) { return Error{Errc::already_exists, "that key belongs to the token " + by_id(id)->name, "make a new key for each token", {}}; }
    if (same == nullptr && by_name_.size() >= max_tokens)
    {
        // The oldest one that ended makes room; its history is in the events.
        const auto oldest = std::min_element(by_name_.begin(), by_name_.end(),
                                             [now_ms](const auto& a, const auto& b)
                                             {
                                                 const bool a_active = state(a.second, now_ms) == "active";
                                                 const bool b_active = state(b.second, now_ms) == "active";
                                                 return a_active != b_active ? b_active : a.second.created_ms < b.second.created_ms;
                                             });
        if (state(oldest->second, now_ms) == "active")
        {
            return Error{Errc::resource_exhausted, "there are " + std::to_string(max_tokens) + " active tokens", "revoke some: dstackup token list", {}};
        }
        names_.erase(oldest->second.id());
        by_name_.erase(oldest);
    }
    put(std::move(token));
    return false;
}

Result<bool> Tokens::revoke(std::string_view name, std::uint64_t now_ms)
{
    const auto found = by_name_.find(name);
    if (found == by_name_.end()) { return Error{Errc::not_found, "there is no token " + std::string{name.substr(0, 64)}, "dstackup token list", {}}; }
    if (found->second.revoked_ms != 0) { return true; }
    found->second.revoked_ms = now_ms;
    return false;
}

const Token* Tokens::by_name(std::string_view name) const
{
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : &found->second;
}

const Token* Tokens::by_id(std::string_view id) const
{
    const auto found = names_.find(id);
    return found == names_.end() ? nullptr : by_name(found->second);
}

Result<const Token*> Tokens::check(std::string_view id, std::uint64_t now_ms) const
{
    const Token* token = by_id(id);
    const std::string_view next = "have a new one made on the bus' host: `dstackup token create`";
    if (token == nullptr) { return Error{Errc::unauthenticated, "no token has the key " + std::string{id}, std::string{next}, {}}; }
    const auto now_is = state(*token, now_ms);
    if (now_is == "revoked")
    {
        return Error{Errc::unauthenticated, "token " + token->name + " was revoked at " + rfc3339(token->revoked_ms), std::string{next}, {}};
    }
    if (now_is == "expired")
    {
        return Error{Errc::unauthenticated, "token " + token->name + " expired at " + rfc3339(token->expires_ms), std::string{next}, {}};
    }
    return token;
}

std::string_view Tokens::state(const Token& token, std::uint64_t now_ms)
{
    if (token.revoked_ms != 0) { return "revoked"; }
    return token.expires_ms <= now_ms ? "expired" : "active";
}

std::vector<const Token*> Tokens::expired_between(std::uint64_t from_ms, std::uint64_t to_ms) const
{
    std::vector<const Token*> out;
    for (const auto& [name, token] : by_name_)
    {
        if (token.revoked_ms == 0 && token.expires_ms > from_ms && token.expires_ms <= to_ms) { out.push_back(&token); }
    }
    return out;
}

} // namespace dstack::bus
