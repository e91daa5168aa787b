// The broker's token commands: a change is on disk before it counts, and counts before it is answered.
#include "bus/broker/broker.hpp"
#include "bus/broker/token_files.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/log/log.hpp"
#include <array>
#include <unistd.h>

namespace dstack::bus
{

bool Broker::is_token_command(std::string_view command)
{
    return command == schema::BusCreateToken::type.name || command == schema::BusListTokens::type.name || command == schema::BusRevokeToken::type.name;
}

schema::TokenEntry Broker::entry_of(const Token& token) const
{
    schema::TokenEntry out;
    out.name = token.name;
    out.role = schema::to_string(token.role);
    out.state = Tokens::state(token, unix_ms());
    out.created = rfc3339(token.created_ms);
    out.expires = rfc3339(token.expires_ms);
    out.key = token.id();
    out.by = token.by;
    out.connections = connections_.of_token(out.key);
    return out;
}

std::string Broker::tcp_address() const
{
    if (!config_.tcp) { return {}; }
    if (config_.advertise) { return config_.advertise->text(); }
    Endpoint out = *config_.tcp;
    if (out.host == "0.0.0.0" || out.host == "::")
    {
        std::array<char, 256> name{};
        out.host = ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "localhost";
    }
    return out.text();
}

Task<> Broker::serve_token(Call call)
{
    auto guard = co_await token_lock_.lock();
    auto answer = co_await token_answer(call);
    if (answer) { send(call.caller_route, {wire::version, wire::result, call.correlation, wire::ok, *answer}); }
    else { fail(call.caller_route, call.correlation, answer.error()); }
}

Task<Result<std::string>> Broker::token_answer(Call call)
{
    if (call.command == schema::BusCreateToken::type.name) { co_return co_await create_token(call); }
    if (call.command == schema::BusRevokeToken::type.name) { co_return co_await revoke_token(call); }
    schema::BusListTokens::Reply reply;
    reply.address = tcp_address();
    const auto key = crypto::from_hex(server_key_);
    if (!server_key_.empty() && key) { reply.server_key = crypto::to_hex(crypto::sha256(crypto::View{*key})).substr(0, 16); }
    for (const auto& [name, token] : tokens_.all()) { reply.tokens.push_back(entry_of(token)); }
    co_return schema::to_json(std::move(reply));
}

Task<Result<Done>> Broker::change_tokens(Tokens next)
{
    const auto job = [directory = state_directory(config_), text = next.to_text()] { return save_tokens(directory, text); };
    auto saved = co_await offload(loop_, job);
    if (saved) { tokens_ = std::move(next); }
    co_return saved;
}

Task<Result<std::string>> Broker::create_token(Call call)
{
    auto wish = schema::from_json<schema::BusCreateToken>(call.command, call.body);
    if (!wish) { co_return std::move(wish).error(); }
    if (!config_.tcp)
    {
        co_return Error{Errc::failed_precondition, "the bus does not listen on tcp, so a token would open nothing",
                        "write into the broker's bus.toml: [tcp] listen = \"0.0.0.0:9700\"; then restart dstack-bus", {}};
    }
    Token token{wish->name, role_from(wish->role), wish->public_key, 0, wish->expires_ms, 0, call.caller};
    Tokens next = tokens_;
    auto already = next.create(std::move(token), unix_ms());
    if (!already) { co_return std::move(already).error(); }
    if (!*already)
    {
        auto saved = co_await change_tokens(next);
        if (!saved) { co_return std::move(saved).error().within("keep the token"); }
        const Token& made = *tokens_.by_name(wish->name);
        schema::BusTokenCreated event;
        event.name = made.name;
        event.role = schema::to_string(made.role);
        event.expires = rfc3339(made.expires_ms);
        event.key = made.id();
        event.by = made.by;
        say(std::move(event));
    }
    schema::BusCreateToken::Reply reply;
    reply.token = entry_of(*tokens_.by_name(wish->name));
    reply.server_key = server_key_;
    reply.address = tcp_address();
    reply.already = *already;
    co_return schema::to_json(std::move(reply));
}

Task<Result<std::string>> Broker::revoke_token(Call call)
{
    auto wish = schema::from_json<schema::BusRevokeToken>(call.command, call.body);
    if (!wish) { co_return std::move(wish).error(); }
    Tokens next = tokens_;
    auto already = next.revoke(wish->name, unix_ms());
    if (!already) { co_return std::move(already).error(); }
    schema::BusRevokeToken::Reply reply;
    reply.already = *already;
    if (!*already)
    {
        auto saved = co_await change_tokens(next);
        if (!saved) { co_return std::move(saved).error().within("the token is not revoked"); }
        const Token& token = *tokens_.by_name(wish->name);
        schema::BusTokenRevoked event;
        event.name = token.name;
        event.role = schema::to_string(token.role);
        event.key = token.id();
        event.by = call.caller;
        reply.cut = connections_.cut_token(event.key);
        say(std::move(event));
    }
    reply.token = entry_of(*tokens_.by_name(wish->name));
    co_return schema::to_json(std::move(reply));
}

} // namespace dstack::bus
