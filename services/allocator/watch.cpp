#include "services/allocator/watch.hpp"
#include "bus/schema/deploy.hpp"
#include "shared/base/time.hpp"
#include "shared/log/log.hpp"
#include <algorithm>

namespace dstack::allocator
{

namespace
{
constexpr std::uint64_t share = 500;      ///< one part in this many of a core, at most
constexpr std::uint64_t row_cost_us = 3;  ///< to read and compare one lease, beside the look itself
constexpr milliseconds ask_limit{5'000};
} // namespace

Watch::Watch(Loop& loop, const Config& config, LeaseBook& book, bus::Client& bus, std::shared_ptr<Eyes> eyes)
    : loop_(loop), config_(config), book_(book), bus_(bus), eyes_(std::move(eyes))
{
}

Task<> Watch::run()
{
    for (;;)
    {
        co_await compare_once();
        const milliseconds dear{static_cast<std::int64_t>(cost_us_ * share / 1000)};
        const milliseconds pause = std::max(config_.watch, dear);
        co_await sleep_for(loop_, pause);
    }
}

Task<> Watch::compare_once()
{
    auto leases = co_await book_.watched(false);
    if (!leases)
    {
        log::error("leases not watched", {{"error", leases.error().message}});
        co_return;
    }
    cost_us_ = leases->size() * row_cost_us;
    if (leases->empty())
    {
        told_.clear();
        co_return;
    }
    auto work = [eyes = eyes_] { return look_at(*eyes); };
    auto looked = co_await offload(loop_, work);
    cost_us_ += looked.cpu_us;
    const auto findings = compare(*leases, looked.uses, unix_ms());
    std::set<std::string> now;
    for (const Finding& finding : findings)
    {
        const std::string key = finding.key();
        now.insert(key);
        if (told_.contains(key)) { continue; }
        auto told = co_await tell(finding);
        if (!told)
        {
            log::error("trouble with a lease not told", {{"reason", finding.reason}, {"error", told.error().message}});
            now.erase(key);
        }
    }
    told_ = std::move(now);
    const std::uint64_t now_ms = unix_ms();
    if (now_ms - leaks_checked_ms_ < static_cast<std::uint64_t>(config_.leak_check.count())) { co_return; }
    leaks_checked_ms_ = now_ms;
    co_await find_leaks(std::move(*leases), std::move(looked.uses));
}

Task<Result<Done>> Watch::tell(Finding finding)
{
    auto lease = co_await book_.find(finding.lease);
    if (!lease) { co_return std::move(lease).error(); }
    if (!*lease) { co_return Done{}; } // given back meanwhile
    if (finding.trouble == Trouble::conflict)
    {
        schema::LeaseConflict event;
        event.lease = std::move(**lease);
        event.pid = static_cast<std::uint64_t>(finding.process.pid);
        event.process = finding.process.name;
        event.unit = finding.process.unit;
        event.command = finding.process.command;
        event.reason = finding.reason;
        auto outgoing = bus::Client::make_event(std::move(event));
        co_return co_await book_.tell(std::move(outgoing));
    }
    schema::LeaseDrift event;
    event.lease = std::move(**lease);
    event.pid = static_cast<std::uint64_t>(finding.process.pid);
    event.reason = finding.reason;
    auto outgoing = bus::Client::make_event(std::move(event));
    co_return co_await book_.tell(std::move(outgoing));
}

Task<Result<std::set<std::string>>> Watch::apps()
{
    schema::AppList question;
    bus::CallOptions options;
    options.deadline = ask_limit;
    auto reply = co_await bus_.call(std::move(question), std::move(options));
    if (!reply) { co_return std::move(reply).error(); }
    std::set<std::string> out;
    for (const schema::App& app : reply->apps) { out.insert(app.name); }
    co_return out;
}

/// A lease that the deployer took, whose app it does not know, twice in a row, and which no VM uses.
Task<> Watch::find_leaks(std::vector<Watched> leases, std::vector<Use> uses)
{
    std::erase_if(leases, [](const Watched& one) { return !one.bound || !one.by_service; });
    if (leases.empty()) { co_return; }
    auto known = co_await apps();
    if (!known) { co_return; } // without the deployer nobody can tell
    std::set<std::string> missing;
    std::map<std::string, bool> runs;
    for (const Watched& one : leases)
    {
        if (known->contains(one.owner)) { continue; }
        if (!runs.contains(one.owner)) { runs[one.owner] = process_of(one.owner, leases, uses).pid != 0; }
        if (!runs[one.owner]) { missing.insert(one.id); }
    }
    for (const std::string& id : missing)
    {
        if (!suspected_.contains(id) || leaked_.contains(id)) { continue; }
        auto lease = co_await book_.find(id);
        if (!lease || !*lease || (*lease)->caller != "deployer") { continue; }
        schema::LeaseLeaked event;
        event.reason = "there is no app " + (*lease)->owner + " any more, and no VM of it; give it back: dstack leases release " + id;
        event.lease = std::move(**lease);
        auto outgoing = bus::Client::make_event(std::move(event));
        auto told = co_await book_.tell(std::move(outgoing));
        if (told) { leaked_.insert(id); }
    }
    std::erase_if(leaked_, [&](const std::string& id) { return !missing.contains(id); });
    suspected_ = std::move(missing);
}

} // namespace dstack::allocator
