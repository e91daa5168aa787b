#pragma once
#include "bus/schema/types.hpp"
#include "shared/base/result.hpp"
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace dstack::bus
{

/// What lets a remote operator in: the public half of a key pair that only the operator's side ever had.
struct Token
{
    std::string name;
    schema::Role role = schema::Role::none;
    std::string public_key; ///< 64 hex digits
    std::uint64_t created_ms = 0;
    std::uint64_t expires_ms = 0;
    std::uint64_t revoked_ms = 0; ///< 0: not revoked
    std::string by;               ///< who created it, as attested

    std::string id() const; ///< fingerprint: the first 16 hex digits of the key's SHA-256
};

/// viewer, operator, admin; anything else is none.
schema::Role role_from(std::string_view name);

/// The broker's tokens. Pure: no file, no clock of its own; broker_tokens.cpp makes changes durable before they count.
class Tokens
{
  public:
    static constexpr std::size_t max_tokens = 1000;
    static constexpr std::uint64_t max_lifetime_ms = 3650ULL * 24 * 3600 * 1000;

    /// The content of tokens.json; a damaged one is refused as a whole: nobody gets in by half a table.
    static Result<Tokens> parse(std::string_view json);
    std::string to_text() const;

    /// invalid_argument, already_exists (an active token of that name with another key, or the key under another name),
    /// resource_exhausted. True: it was there already, the same. One that ended makes way for a new one of its name.
    Result<bool> create(Token token, std::uint64_t now_ms);
    /// not_found. True: it was revoked before.
    Result<bool> revoke(std::string_view name, std::uint64_t now_ms);

    const Token* by_name(std::string_view name) const;
    const Token* by_id(std::string_view id) const;
    /// The token of a key or connection, as long as it is neither unknown, revoked nor expired; else unauthenticated with
    /// the reason. Cheap enough for every message: one look-up in a small table.
    Result<const Token*> check(std::string_view id, std::uint64_t now_ms) const;

    /// "active", "expired" or "revoked".
    static std::string_view state(const Token& token, std::uint64_t now_ms);
    /// Tokens that ended by time in (`from_ms`, `to_ms`].
    std::vector<const Token*> expired_between(std::uint64_t from_ms, std::uint64_t to_ms) const;
    const std::map<std::string, Token, std::less<>>& all() const { return by_name_; }

  private:
    void put(Token token);
    std::map<std::string, Token, std::less<>> by_name_;
    std::map<std::string, std::string, std::less<>> names_; ///< id -> name
};

} // namespace dstack::bus
