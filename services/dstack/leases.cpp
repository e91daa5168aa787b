// dstack leases | leases explain | leases release
#include "bus/schema/lease.hpp"
#include "services/dstack/document.hpp"
#include "services/dstack/exit_code.hpp"
#include "services/dstack/text.hpp"
#include "services/dstack/verbs.hpp"
#include "shared/base/time.hpp"
#include <charconv>
#include <map>

namespace dstack::cli
{

namespace
{
std::string or_dash(const std::string& text) { return text.empty() ? "-" : printable(text); }

std::string what_of(const std::string& kind, const std::string& protocol, const std::string& address, std::uint32_t value, std::uint32_t last)
{
    const std::string number = std::to_string(value) + (last > value ? "-" + std::to_string(last) : "");
    if (kind == "vsock_port") { return "vsock port " + number; }
    if (kind != "port") { return printable(kind) + " " + number; }
    const bool six = address.find(':') != std::string::npos;
    return printable(protocol) + " " + (six ? "[" + printable(address) + "]" : printable(address)) + ":" + number;
}

std::string what_of(const schema::Lease& lease) { return what_of(lease.kind, lease.protocol, lease.address, lease.value, 0); }
std::string what_of(const schema::HostUse& use) { return what_of(use.kind, use.protocol, use.address, use.value, use.last); }

std::string process_of(const schema::HostUse& use)
{
    if (use.pid == 0) { return "-"; }
    return printable(use.process) + " " + std::to_string(use.pid) + (use.unit.empty() ? "" : " (" + printable(use.unit) + ")");
}

std::string_view take(std::string_view& text, char end)
{
    const std::string_view out = text.substr(0, text.find(end));
    text.remove_prefix(std::min(out.size() + 1, text.size()));
    return out;
}

std::uint64_t number_of(std::string_view text)
{
    std::uint64_t value = 0;
    std::from_chars(text.data(), text.data() + text.size(), value);
    return value;
}

std::string time_of(std::uint64_t unix_ms) { return unix_ms == 0 ? std::string{} : rfc3339(unix_ms); }

/// As age() has it, without the way through a text.
std::string age_of(std::uint64_t since_ms, std::uint64_t now_ms)
{
    const std::uint64_t seconds = now_ms > since_ms ? (now_ms - since_ms) / 1000 : 0;
    if (seconds < 60) { return std::to_string(seconds) + "s"; }
    if (seconds < 3600) { return std::to_string(seconds / 60) + "m"; }
    return seconds < 86'400 ? std::to_string(seconds / 3600) + "h" : std::to_string(seconds / 86'400) + "d";
}

/// A lease, and when it entered its state.
struct Row
{
    schema::Lease lease;
    std::uint64_t since_ms = 0;
    std::uint64_t expires_ms = 0;
};

/// The compact form of lease.list.
void add_rows(std::string_view rows, std::vector<Row>& out)
{
    while (!rows.empty())
    {
        std::string_view row = take(rows, '\n');
        Row& added = out.emplace_back();
        schema::Lease& lease = added.lease;
        const auto next = [&] { return take(row, '\t'); };
        lease.id = next();
        lease.kind = next();
        lease.protocol = next();
        lease.address = next();
        lease.value = static_cast<std::uint32_t>(number_of(next()));
        lease.owner = next();
        lease.purpose = next();
        lease.state = next();
        added.since_ms = number_of(next());
        added.expires_ms = number_of(next());
        lease.vm = next();
        lease.install = next();
        lease.caller = next();
    }
}

struct All
{
    std::vector<Row> rows;
    std::string database;
    bool host_wide = false;
};

/// All pages.
Task<Result<All>> all_leases(Session& session)
{
    All out;
    std::uint64_t after = 0;
    do
    {
        schema::LeaseList question;
        question.all = session.options().all;
        question.after = after;
        question.compact = true;
        auto options = session.call_options();
        auto page = co_await session.bus().call(std::move(question), std::move(options));
        if (!page) { co_return std::move(page).error(); }
        after = page->next;
        add_rows(page->rows, out.rows);
        out.database = std::move(page->database);
        out.host_wide = page->host_wide;
    } while (after != 0);
    co_return out;
}

Task<Result<std::vector<schema::HostUse>>> all_uses(Session& session)
{
    std::vector<schema::HostUse> out;
    std::uint64_t after = 0;
    do
    {
        schema::LeaseHost question;
        question.after = after;
        auto options = session.call_options();
        auto page = co_await session.bus().call(std::move(question), std::move(options));
        if (!page) { co_return std::move(page).error(); }
        after = page->next;
        std::move(page->uses.begin(), page->uses.end(), std::back_inserter(out));
    } while (after != 0);
    co_return out;
}

std::string own_table(const std::vector<Row>& leases)
{
    std::vector<std::vector<std::string>> rows{{"WHAT", "OWNER", "STATE", "AGE", "PURPOSE", "ID"}};
    const std::uint64_t now_ms = unix_ms();
    for (const auto& [lease, since_ms, expires_ms] : leases)
    {
        rows.push_back({what_of(lease), printable(lease.owner), printable(lease.state), age_of(since_ms, now_ms), or_dash(lease.purpose), lease.id});
    }
    return table(rows);
}

std::string host_table(const std::vector<Row>& leases, const std::vector<schema::HostUse>& uses)
{
    std::multimap<std::string_view, const schema::HostUse*> by_lease;
    for (const auto& use : uses)
    {
        if (!use.lease.empty()) { by_lease.emplace(use.lease, &use); }
    }
    std::vector<std::vector<std::string>> rows{{"WHAT", "OWNER", "STATE", "AGE", "USED BY", "WHY", "ID"}};
    const std::uint64_t now_ms = unix_ms();
    for (const auto& [lease, since_ms, expires_ms] : leases)
    {
        const auto user = by_lease.find(lease.id);
        std::string why = lease.purpose;
        if (!lease.install.empty()) { why += (why.empty() ? "" : ", ") + ("install in " + lease.install); }
        rows.push_back({what_of(lease), printable(lease.owner), printable(lease.state), age_of(since_ms, now_ms),
                        user == by_lease.end() ? "-" : process_of(*user->second), or_dash(why), lease.id});
    }
    for (const auto& use : uses)
    {
        if (use.lease.empty()) { rows.push_back({what_of(use), "-", "in use", "-", process_of(use), or_dash(use.why), "-"}); }
    }
    return table(rows);
}
} // namespace

Task<int> show_leases(Session& session)
{
    auto reply = co_await all_leases(session);
    if (!reply) { co_return session.fail(reply.error()); }
    std::vector<schema::HostUse> uses;
    if (session.options().all)
    {
        auto seen = co_await all_uses(session);
        if (!seen) { co_return session.fail(seen.error()); }
        uses = std::move(*seen);
    }
    std::vector<std::string> warnings;
    if (!reply->host_wide) { warnings.push_back("these leases are kept in " + reply->database + ", for this install alone: other installs on this host do not see them"); }
    if (session.options().json)
    {
        std::vector<schema::Lease> leases;
        for (Row& row : reply->rows)
        {
            row.lease.since = time_of(row.since_ms);
            row.lease.expires = time_of(row.expires_ms);
            leases.push_back(std::move(row.lease));
        }
        session.out(document("leases", leases_json(leases, uses, reply->database), warnings));
        co_return exit_ok;
    }
    for (const auto& warning : warnings) { session.warn("warning: " + warning); }
    if (reply->rows.empty() && uses.empty())
    {
        session.note("nothing is leased");
        co_return exit_ok;
    }
    session.out(session.options().all ? host_table(reply->rows, uses) : own_table(reply->rows));
    co_return exit_ok;
}

Task<int> explain_lease(Session& session)
{
    schema::LeaseExplain question;
    question.what = session.options().app;
    auto options = session.call_options();
    auto reply = co_await session.bus().call(std::move(question), std::move(options));
    if (!reply) { co_return session.fail(reply.error()); }
    if (session.options().json)
    {
        session.out(document("lease_explanation", explanation_json(*reply)));
        co_return exit_ok;
    }
    std::string text = printable(reply->what) + ": " + (reply->free ? "free" : "taken") + "\n";
    for (const auto& reason : reply->reasons) { text += "  " + printable(reason) + "\n"; }
    for (const auto& use : reply->uses)
    {
        if (!use.command.empty()) { text += "  pid " + std::to_string(use.pid) + ": " + printable(use.command) + "\n"; }
    }
    session.out(text);
    co_return exit_ok;
}

Task<int> release_lease(Session& session)
{
    const std::string id = session.options().app;
    if (session.options().dry_run)
    {
        session.note("would release " + printable(id) + ", if its owner does not live");
        co_return exit_ok;
    }
    schema::LeaseRelease command;
    command.id = id;
    auto options = session.call_options();
    auto reply = co_await session.bus().call(std::move(command), std::move(options));
    if (!reply) { co_return session.fail(reply.error()); }
    if (session.options().json) { session.out(document("lease_released", released_json(id, reply->released))); }
    else { session.out("released " + printable(id) + "\n"); }
    co_return exit_ok;
}

} // namespace dstack::cli
