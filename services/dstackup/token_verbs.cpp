#include "services/dstackup/token_verbs.hpp"
#include "bus/client/client.hpp"
#include "bus/client/join.hpp"
#include "bus/schema/bus.hpp"
#include "services/dstackup/layout.hpp"
#include "shared/base/time.hpp"
#include "shared/crypto/curve25519.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/state/files.hpp"
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <unistd.h>

namespace dstack::up
{

namespace
{
constexpr milliseconds bus_deadline{5'000};

template <schema::CommandStruct C>
Task<> ask_bus(Loop& loop, bus::ClientConfig config, C command, bus::CallOptions options, std::optional<Result<typename C::Reply>>& out)
{
    bus::Client client{loop, std::move(config)};
    auto connected = co_await client.connect(bus_deadline);
    if (!connected)
    {
        out.emplace(std::move(connected).error());
        co_return;
    }
    auto reply = co_await client.call(std::move(command), std::move(options));
    out.emplace(std::move(reply));
    co_await client.disconnect(bus_deadline);
}

template <schema::CommandStruct C>
Result<typename C::Reply> ask(const Global& global, C command)
{
    bus::ClientConfig config;
    config.directory = Layout{global.prefix}.bus();
    bus::CallOptions options;
    if (global.timeout_s > 0) { options.deadline = milliseconds{global.timeout_s * 1000}; }
    std::optional<Result<typename C::Reply>> out;
    {
        Loop loop;
        loop.run(ask_bus(loop, std::move(config), std::move(command), std::move(options), out));
    }
    return std::move(*out);
}

nlohmann::ordered_json json_of(const schema::TokenEntry& token)
{
    return {{"name", token.name}, {"role", token.role}, {"state", token.state}, {"created", token.created}, {"expires", token.expires},
            {"key", token.key}, {"by", token.by}, {"connections", token.connections}};
}

/// Where the secret may go must be known before there is one.
Result<Done> check_out(const std::string& path)
{
    if (path.empty()) { return Done{}; }
    if (::access(path.c_str(), F_OK) == 0)
    {
        return Error{Errc::already_exists, "--out " + path + ": it is there already", "name another file, or remove that one", {}};
    }
    const auto slash = path.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
    if (::access(folder.c_str(), W_OK | X_OK) != 0) { return errno_error("--out " + path + ": " + folder, errno); }
    return Done{};
}

Result<bus::Join> create(const Global& global, const TokenCreate& wish, schema::BusCreateToken::Reply& reply)
{
    auto lifetime = parse_lifetime(wish.expires);
    if (!lifetime) { return std::move(lifetime).error().within("--expires"); }
    std::optional<bus::Endpoint> address;
    if (!wish.address.empty())
    {
        auto parsed = bus::parse_endpoint(wish.address);
        if (!parsed) { return std::move(parsed).error().within("--address"); }
        address = std::move(*parsed);
    }
    auto writable = check_out(wish.out);
    if (!writable) { return std::move(writable).error(); }
    bus::Join join;
    join.name = wish.name;
    crypto::fill_random(join.secret_key); // it leaves this process only in the join string
    join.expires_ms = unix_ms() + *lifetime;
    schema::BusCreateToken command;
    command.name = wish.name;
    command.role = wish.role;
    command.expires_ms = join.expires_ms;
    command.public_key = crypto::to_hex(crypto::x25519_public(join.secret_key));
    auto made = ask(global, std::move(command));
    if (!made) { return std::move(made).error(); }
    auto server_key = crypto::from_hex_fixed<32>(made->server_key);
    auto endpoint = bus::parse_endpoint(made->address);
    if (!server_key || !endpoint) { return Error{Errc::internal, "the bus gave no key or address for the token", {}, {}}; }
    join.server_key = *server_key;
    join.endpoint = address ? std::move(*address) : std::move(*endpoint);
    reply = std::move(*made);
    return join;
}
} // namespace

int token_create(const Global& global, const TokenCreate& wish)
{
    schema::BusCreateToken::Reply reply;
    auto join = create(global, wish, reply);
    if (!join) { return print_error(global, join.error()); }
    const std::string text = bus::to_join_string(*join);
    if (!wish.out.empty())
    {
        auto written = state::write_file_atomic(wish.out, text + "\n", 0600);
        if (!written)
        {
            return print_error(global, std::move(written).error().with_hint("the token exists, but nobody has it: dstackup token revoke " + wish.name));
        }
    }
    if (global.json)
    {
        auto data = json_of(reply.token);
        data["address"] = join->endpoint.text();
        data["serverKey"] = bus::key_fingerprint(join->server_key);
        if (wish.out.empty()) { data["join"] = text; }
        else { data["file"] = wish.out; }
        print_document("token", data.dump());
        return exit_ok;
    }
    if (wish.out.empty()) { std::printf("%s\n", text.c_str()); }
    say(global, "token " + wish.name + ": " + reply.token.role + " until " + reply.token.expires + ", for " + join->endpoint.text() + " (key " +
                    bus::key_fingerprint(join->server_key) + ")");
    say(global, wish.out.empty() ? "this is shown once, and whoever has it has the role; put it into a file of mode 0600, then:"
                                 : "whoever has " + wish.out + " has the role; take it to the operator, then:");
    say(global, "  dstack --token-file FILE ls");
    return exit_ok;
}

int token_list(const Global& global)
{
    auto reply = ask(global, schema::BusListTokens{});
    if (!reply) { return print_error(global, reply.error()); }
    if (global.json)
    {
        nlohmann::ordered_json list = nlohmann::ordered_json::array();
        for (const auto& token : reply->tokens) { list.push_back(json_of(token)); }
        print_document("token-list", nlohmann::ordered_json{{"address", reply->address}, {"serverKey", reply->server_key}, {"tokens", std::move(list)}}.dump());
        return exit_ok;
    }
    std::size_t width = 4;
    for (const auto& token : reply->tokens) { width = std::max(width, token.name.size()); }
    const int name_width = static_cast<int>(width);
    if (!reply->tokens.empty()) { std::printf("%-*s  %-8s  %-7s  %-24s  %-16s  %s\n", name_width, "NAME", "ROLE", "STATE", "EXPIRES", "KEY", "OPEN"); }
    for (const auto& token : reply->tokens)
    {
        std::printf("%-*s  %-8s  %-7s  %-24s  %-16s  %llu\n", name_width, token.name.c_str(), token.role.c_str(), token.state.c_str(), token.expires.c_str(),
                    token.key.c_str(), static_cast<unsigned long long>(token.connections));
    }
    if (reply->tokens.empty()) { say(global, "no tokens: dstackup token create NAME makes one"); }
    if (reply->address.empty()) { say(global, "the bus does not listen on tcp: nobody can use a token now"); }
    return exit_ok;
}

int token_revoke(const Global& global, const std::string& name)
{
    schema::BusRevokeToken command;
    command.name = name;
    auto reply = ask(global, std::move(command));
    if (!reply) { return print_error(global, reply.error()); }
    if (global.json)
    {
        auto data = json_of(reply->token);
        data["already"] = reply->already;
        data["cut"] = reply->cut;
        print_document("token", data.dump());
    }
    else if (reply->already) { std::printf("already revoked %s\n", name.c_str()); }
    else { std::printf("revoked %s, and ended its connections: %llu\n", name.c_str(), static_cast<unsigned long long>(reply->cut)); }
    return exit_ok;
}

} // namespace dstack::up
