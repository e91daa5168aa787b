#include "services/auth/chain/resolver.hpp"
#include <algorithm>
#include <arpa/inet.h>
#include <array>
#include <netdb.h>

namespace dstack::auth::chain
{

namespace
{

constexpr std::chrono::seconds fresh{60};
constexpr std::size_t max_lookups = 2;
constexpr std::size_t max_addresses = 8;

bool is_address(const std::string& host)
{
    std::array<unsigned char, sizeof(in6_addr)> bytes{};
    return inet_pton(AF_INET, host.c_str(), bytes.data()) == 1 || inet_pton(AF_INET6, host.c_str(), bytes.data()) == 1;
}

/// Blocking.
Result<std::vector<std::string>> ask_system(const std::string& host)
{
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* list = nullptr;
    const int failed = getaddrinfo(host.c_str(), nullptr, &hints, &list);
    if (failed != 0) { return Error{Errc::unavailable, gai_strerror(failed), {}, {}}; }
    std::vector<std::string> out;
    for (const addrinfo* one = list; one != nullptr && out.size() < max_addresses; one = one->ai_next)
    {
        std::array<char, NI_MAXHOST> text{};
        const int named = getnameinfo(one->ai_addr, one->ai_addrlen, text.data(), text.size(), nullptr, 0, NI_NUMERICHOST);
        const std::string address = text.data();
        if (named == 0 && std::find(out.begin(), out.end(), address) == out.end()) { out.push_back(address); }
    }
    freeaddrinfo(list);
    if (out.empty()) { return Error{Errc::unavailable, "no address", {}, {}}; }
    return out;
}

Task<Result<Done>> done_with(Event* event)
{
    co_await event->wait();
    co_return Done{};
}

} // namespace

Task<> Resolver::look_up(std::string host, Entry* entry)
{
    while (busy_ >= max_lookups)
    {
        freed_.reset();
        co_await freed_.wait();
    }
    ++busy_;
    auto job = [host] { return ask_system(host); };
    auto found = co_await offload(loop_, job);
    --busy_;
    freed_.set();
    entry->asking = false;
    entry->error = found ? std::string{} : found.error().message;
    if (found)
    {
        entry->addresses = std::move(*found);
        entry->at = loop_.now();
    }
    entry->done.set();
}

Task<Result<std::vector<std::string>>> Resolver::addresses(std::string host, milliseconds limit)
{
    if (is_address(host)) { co_return std::vector<std::string>{host}; }
    auto& slot = entries_[host];
    if (!slot) { slot = std::make_unique<Entry>(loop_); }
    Entry* entry = slot.get();
    if (entry->addresses.empty() || loop_.now() - entry->at > fresh)
    {
        if (!entry->asking)
        {
            entry->asking = true;
            entry->done.reset();
            scope_.spawn(look_up(host, entry));
        }
        auto waiting = done_with(&entry->done);
        const milliseconds wait = entry->addresses.empty() ? limit : std::min(limit, patience);
        auto ended = co_await with_timeout(loop_, wait, "name server", std::move(waiting));
        if (entry->addresses.empty())
        {
            Error error{Errc::unavailable, ended ? entry->error : ended.error().message, {}, {}};
            co_return error;
        }
    }
    std::vector<std::string> out = entry->addresses;
    const auto best = std::find(out.begin(), out.end(), entry->preferred);
    if (best != out.end()) { std::rotate(out.begin(), best, best + 1); }
    co_return out;
}

void Resolver::prefer(const std::string& host, const std::string& address)
{
    const auto found = entries_.find(host);
    if (found != entries_.end()) { found->second->preferred = address; }
}

} // namespace dstack::auth::chain
