// dstack audit list | show | export | verify, dstack why, dstack policy test
#include "bus/schema/audit.hpp"
#include "bus/schema/deploy.hpp"
#include "services/dstack/audit_view.hpp"
#include "services/dstack/document.hpp"
#include "services/dstack/exit_code.hpp"
#include "services/dstack/text.hpp"
#include "services/dstack/verbs.hpp"
#include "shared/base/time.hpp"
#include "shared/state/files.hpp"
#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <sys/stat.h>

namespace dstack::cli
{

namespace
{
constexpr std::uint32_t page_size = 500;
constexpr std::size_t max_policy_bytes = 900 * 1024; // what one command of the bus carries
constexpr std::size_t max_boot_bytes = 64 * 1024;

bool is_hex(std::string_view text, std::size_t digits)
{
    return text.size() == digits && text.find_first_not_of("0123456789abcdefABCDEF") == std::string_view::npos;
}

/// What the words of a question name: an app by name or id, a VM by its id.
struct Named
{
    std::string app_id;
    std::string instance_id;
    std::string name;
};

Task<Result<Named>> resolve(Session& session, std::string word)
{
    Named out;
    schema::AppInfo question;
    question.app = word;
    auto options = session.call_options(3'000);
    auto reply = co_await session.bus().call(std::move(question), std::move(options));
    if (reply)
    {
        out.app_id = reply->app.app_id;
        out.name = reply->app.name;
        if (word == reply->app.vm_id) { out.instance_id = reply->app.instance_id; }
        co_return out;
    }
    if (!is_hex(word, 40)) { co_return std::move(reply).error(); }
    out.app_id = std::move(word); // also of an app that is not on this host, or no more
    co_return out;
}

Result<std::uint64_t> since_ms(const std::string& text)
{
    if (text.empty()) { return std::uint64_t{0}; }
    auto time = parse_time(text);
    if (time) { return time; }
    auto age = parse_duration(text);
    if (!age) { return Error{Errc::invalid_argument, "--since " + text + ": neither a time (RFC 3339) nor how long ago", "such as 2026-01-31T10:00:00Z, or 2h", {}}; }
    return unix_ms() - std::min(unix_ms(), *age);
}

Task<Result<schema::AuthAudit>> question_of(Session& session)
{
    const Options& options = session.options();
    schema::AuthAudit out;
    out.denied = options.denied;
    out.allowed = options.allowed;
    out.kind = options.kind;
    auto since = since_ms(options.since);
    if (!since) { co_return std::move(since).error(); }
    out.since_ms = *since;
    if (options.app.empty()) { co_return out; }
    auto named = co_await resolve(session, options.app);
    if (!named) { co_return std::move(named).error(); }
    out.app_id = named->app_id;
    co_return out;
}

Result<std::string> read_input(const std::string& path, std::size_t limit)
{
    if (path != "-") { return state::read_file(path, limit); }
    std::string out;
    std::array<char, 65536> buffer{};
    for (std::size_t got = 1; got != 0;)
    {
        got = std::fread(buffer.data(), 1, buffer.size(), stdin);
        out.append(buffer.data(), got);
        if (out.size() > limit) { return Error{Errc::resource_exhausted, "stdin: longer than " + std::to_string(limit) + " bytes", {}, {}}; }
    }
    return out;
}

bool exists(const std::string& path)
{
    struct stat facts = {};
    return ::stat(path.c_str(), &facts) == 0;
}

std::string ledger_directory(const Options& options)
{
    if (!options.directory.empty()) { return options.directory; }
    const char* environment = std::getenv("DSTACK_PREFIX");
    if (!options.prefix.empty()) { return options.prefix + "/var/lib/dstack/auth"; }
    if (environment != nullptr && *environment != '\0') { return std::string{environment} + "/var/lib/dstack/auth"; }
    return exists("/var/lib/dstack/auth") ? "/var/lib/dstack/auth" : "/var/lib/dstack-dev/var/lib/dstack/auth";
}

Result<ledger::VerifyOptions> verify_options(const Options& options)
{
    ledger::VerifyOptions out;
    out.directory = ledger_directory(options);
    out.public_key_path = options.key_file;
    if (options.expect.empty()) { return out; }
    const auto colon = options.expect.find(':');
    std::uint64_t number = 0;
    const char* const begin = options.expect.data();
    const char* const end = begin + std::min(colon, options.expect.size());
    const auto [stop, failed] = std::from_chars(begin, end, number);
    const std::string hash = colon == std::string::npos ? "" : options.expect.substr(colon + 1);
    if (failed != std::errc{} || stop != end || number == 0 || !is_hex(hash, 64))
    {
        return Error{Errc::invalid_argument, "--expect " + options.expect + ": must be RECORD:HASH", "as `dstack audit verify` said it at `last record`", {}};
    }
    out.expect_sequence = number;
    out.expect_hash = hash;
    return out;
}
} // namespace

Task<int> audit_list(Session& session)
{
    auto question = co_await question_of(session);
    if (!question) { co_return session.fail(question.error()); }
    std::vector<std::string> lines;
    std::uint64_t next = 0;
    const std::uint32_t limit = session.options().limit;
    do
    {
        schema::AuthAudit page = *question;
        page.before = next;
        page.limit = static_cast<std::uint32_t>(std::min<std::size_t>(page_size, limit - lines.size()));
        auto options = session.call_options();
        auto reply = co_await session.bus().call(std::move(page), std::move(options));
        if (!reply) { co_return session.fail(reply.error()); }
        for (std::string& line : reply->records) { lines.push_back(std::move(line)); }
        next = reply->next;
    } while (next != 0 && lines.size() < limit);
    if (session.options().json) { session.out(document("audit", records_json(lines, next))); }
    else if (lines.empty()) { session.note("no such records"); }
    else { session.out(records_text(lines)); }
    co_return exit_ok;
}

Task<int> audit_show(Session& session)
{
    schema::AuthAudit question;
    question.sequence = session.options().decision;
    if (question.sequence == 0) { co_return session.fail(Error{Errc::invalid_argument, "records are numbered from 1", {}, {}}); }
    auto options = session.call_options();
    auto reply = co_await session.bus().call(std::move(question), std::move(options));
    if (!reply) { co_return session.fail(reply.error()); }
    if (reply->records.empty()) { co_return session.fail(Error{Errc::not_found, "there is no such record", {}, {}}); }
    const std::string& line = reply->records.front();
    session.out(session.options().json ? document("audit_record", record_json(line)) : record_text(line));
    co_return exit_ok;
}

Task<int> audit_export(Session& session)
{
    auto question = co_await question_of(session);
    if (!question) { co_return session.fail(question.error()); }
    session.watch_reader();
    for (std::uint64_t next = 1; next != 0;)
    {
        schema::AuthAudit page = *question;
        page.from = next;
        page.limit = page_size;
        auto options = session.call_options(30'000);
        auto reply = co_await session.bus().call(std::move(page), std::move(options));
        if (!reply) { co_return session.fail(reply.error()); }
        for (const std::string& line : reply->records) { session.out(line + "\n"); }
        next = reply->next;
    }
    session.out("", true);
    co_return exit_ok;
}

Task<int> audit_verify(Session& session)
{
    auto options = verify_options(session.options());
    if (!options) { co_return session.fail(options.error()); }
    auto report = ledger::verify(*options);
    if (!report) { co_return session.fail(report.error()); }
    const std::string& directory = options->directory;
    session.out(session.options().json ? document("audit_verify", verify_json(*report, directory)) : verify_text(*report, directory), true);
    if (report->unfinished != 0)
    {
        session.note(std::to_string(report->unfinished) + " bytes at the end are no whole record: one is being written, or a crash left it, and the next start cuts it off");
    }
    if (!report->intact()) { co_return exit_incomplete; }
    const std::uint64_t open = report->records - report->signed_records;
    if (open != 0) { session.note(std::to_string(open) + " records are behind the newest checkpoint: if they were cut off, nobody could tell"); }
    if (options->public_key_path.empty()) { session.note("the key lies beside the ledger: who can write there can forge both; compare with a copy: --key FILE"); }
    if (!options->expect_sequence && report->records != 0)
    {
        session.note("note elsewhere: --expect " + std::to_string(report->records) + ":" + report->head + " shows later that nothing up to here was cut or rewritten");
    }
    co_return exit_ok;
}

Task<int> show_why(Session& session)
{
    const std::string id = session.options().app;
    schema::AuthExplain question;
    std::string name;
    const bool number = !id.empty() && id.size() < 19 && id.find_first_not_of("0123456789") == std::string::npos;
    if (number) { std::from_chars(id.data(), id.data() + id.size(), question.sequence); }
    else
    {
        auto named = co_await resolve(session, id);
        if (!named) { co_return session.fail(named.error()); }
        question.app_id = named->app_id;
        question.instance_id = named->instance_id;
        name = named->name;
    }
    if (number && question.sequence == 0) { co_return session.fail(Error{Errc::invalid_argument, "decisions are numbered from 1", {}, {}}); }
    auto options = session.call_options();
    schema::AuthExplain first = question;
    auto reply = co_await session.bus().call(std::move(first), std::move(options));
    const bool maybe_instance = !reply && reply.error().code == Errc::not_found && name.empty() && is_hex(id, 40);
    if (maybe_instance)
    {
        question.instance_id = std::move(question.app_id);
        question.app_id.clear();
        auto again = session.call_options();
        auto other = co_await session.bus().call(std::move(question), std::move(again));
        if (other) { reply = std::move(other); }
    }
    if (!reply) { co_return session.fail(reply.error()); }
    session.out(session.options().json ? document("why", why_json(*reply, name)) : why_text(*reply, name));
    co_return exit_ok;
}

Task<int> policy_test(Session& session)
{
    const Options& options = session.options();
    schema::AuthTestPolicy question;
    question.kind = options.kind;
    question.sequence = options.decision;
    question.last = options.last;
    if (!options.boot_info.empty())
    {
        auto text = read_input(options.boot_info, max_boot_bytes);
        if (!text) { co_return session.fail(std::move(text).error().within("--boot-info")); }
        question.boot_info = std::move(*text);
        if (question.boot_info.empty()) { co_return session.fail(Error{Errc::invalid_argument, "--boot-info: it is empty", {}, {}}); }
    }
    if (!options.with.empty())
    {
        auto text = read_input(options.with, max_policy_bytes);
        if (!text) { co_return session.fail(std::move(text).error().within("--with")); }
        question.policy = std::move(*text);
        if (question.policy.empty()) { co_return session.fail(Error{Errc::invalid_argument, "--with: it is empty", {}, {}}); }
    }
    auto call = session.call_options(60'000);
    auto reply = co_await session.bus().call(std::move(question), std::move(call));
    if (!reply) { co_return session.fail(reply.error()); }
    session.out(options.json ? document("policy_test", test_json(*reply)) : test_text(*reply, options.last == 0));
    co_return options.with_exit_code && reply->to_allowed + reply->to_denied != 0 ? exit_changes : exit_ok;
}

} // namespace dstack::cli
