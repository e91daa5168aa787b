#pragma once
#include "services/dstackup/print.hpp"

namespace dstack::up
{

struct TokenCreate
{
    std::string name{};
    std::string role = "viewer";
    std::string expires = "30d"; ///< from now: 90s, 15m, 12h, 30d, 8w
    std::string address{};       ///< HOST[:PORT] as the operator reaches it; empty: as the broker says
    std::string out{};           ///< empty: the join string goes to stdout
};

/// "90s", "15m", "12h", "30d", "8w" in ms; at least a second.
Result<std::uint64_t> parse_lifetime(std::string_view text);

int token_create(const Global& global, const TokenCreate& wish);
int token_list(const Global& global);
int token_revoke(const Global& global, const std::string& name);

} // namespace dstack::up
