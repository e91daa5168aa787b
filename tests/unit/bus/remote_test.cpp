#include "bus/broker/calls.hpp"
#include "bus/broker/config.hpp"
#include "bus/broker/identity.hpp"
#include "bus/broker/quota.hpp"
#include "bus/broker/token_files.hpp"
#include "bus/broker/tokens.hpp"
#include "bus/client/join.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include "shared/state/files.hpp"
#include "tests/catch.hpp"
#include <cstdlib>
#include <sys/stat.h>
#include <unistd.h>

using namespace dstack;
using namespace dstack::bus;
using schema::Role;

namespace
{
constexpr std::uint64_t day = 24ULL * 3600 * 1000;
constexpr std::uint64_t now = 1'800'000'000'000;

std::string key(char digit) { return std::string(64, digit); }
Token token(const char* name, char digit, Role role = Role::viewer, std::uint64_t expires = now + day)
{
    return Token{name, role, key(digit), 0, expires, 0, "admin:uid=0:pid=1"};
}

struct Folder
{
    std::string path;
    Folder()
    {
        std::string text = "/tmp/dst-remote-XXXXXX";
        path = ::mkdtemp(text.data());
    }
    ~Folder() { static_cast<void>(state::remove_tree(path)); }
};

Join sample()
{
    Join join;
    join.name = "ann";
    join.endpoint = {"bus.example", 9700};
    join.server_key.fill(7);
    join.secret_key.fill(9);
    join.expires_ms = now;
    return join;
}
} // namespace

TEST_CASE("endpoints")
{
    struct Row
    {
        const char* text;
        const char* out; ///< empty: refused
    };
    const Row rows[] = {
        {"127.0.0.1:9700", "127.0.0.1:9700"}, {"bus.example", "bus.example:9700"}, {"bus.example:1", "bus.example:1"},
        {"[::1]:80", "[::1]:80"},             {"[::1]", "[::1]:9700"},              {"h:65534", "h:65534"},
        {"", ""},                             {":9700", ""},                        {"h:", ""},
        {"h:0", ""},                          {"h:65535", ""},                      {"h:99999999999", ""},
        {"h:1x", ""},                         {"h:-1", ""},                         {"tcp://h:1", ""},
        {"*:9700", ""},                       {"h;1.2.3.4:9700", ""},               {"::1", ""},
        {"[h]:1", ""},                        {"[::1", ""},                         {"[::1]9", ""},
        {"h h:1", ""},
    };
    for (const Row& row : rows)
    {
        CAPTURE(row.text);
        auto endpoint = parse_endpoint(row.text);
        CHECK((endpoint ? endpoint->text() : "") == row.out);
    }
    CHECK(parse_endpoint("h:9700")->events() == "tcp://h:9701");
}

TEST_CASE("a join string survives copying, and nothing else does")
{
    const std::string text = to_join_string(sample());
    CHECK(text.starts_with("dstack-join-v1."));
    CHECK(text.find_first_of(" \n+/=") == std::string::npos);
    auto back = parse_join_string("  " + text + "\n");
    REQUIRE(back);
    CHECK(back->name == "ann");
    CHECK(back->endpoint.text() == "bus.example:9700");
    CHECK(back->server_key == sample().server_key);
    CHECK(back->secret_key == sample().secret_key);
    CHECK(back->expires_ms == now);
    for (std::size_t cut = 0; cut < text.size(); cut += 7)
    {
        CAPTURE(cut);
        auto short_one = parse_join_string(text.substr(0, cut));
        REQUIRE_FALSE(short_one);
        CHECK(short_one.error().code == Errc::invalid_argument);
        CHECK(short_one.error().message.find(text.substr(20, 12)) == std::string::npos); // a secret is not shown
    }
    for (std::size_t i = 15; i < text.size(); i += 5)
    {
        std::string wrong = text;
        wrong[i] = wrong[i] == 'A' ? 'B' : 'A';
        CAPTURE(i);
        CHECK_FALSE(parse_join_string(wrong));
    }
    CHECK_FALSE(parse_join_string("dstack-join-v2." + text.substr(15)));
    CHECK_FALSE(parse_join_string(text + "A"));
    CHECK_FALSE(parse_join_string("dstack-join-v1." + std::string(8000, 'A')));
}

TEST_CASE("a token file that others may read is refused")
{
    const Folder folder;
    const std::string path = folder.path + "/ann.join";
    REQUIRE(state::write_file_atomic(path, to_join_string(sample()) + "\n", 0600));
    CHECK(read_token_file(path));
    for (const mode_t mode : {0644, 0640, 0604, 0660})
    {
        CAPTURE(mode);
        REQUIRE(::chmod(path.c_str(), mode) == 0);
        auto refused = read_token_file(path);
        REQUIRE_FALSE(refused);
        CHECK(refused.error().code == Errc::permission_denied);
        CHECK(refused.error().hint == "chmod 600 " + path);
    }
    CHECK(read_token_file(folder.path + "/none").error().code == Errc::not_found);
}

TEST_CASE("tokens: what may be created, and what it is worth")
{
    Tokens tokens;
    CHECK(*tokens.create(token("ann", '1', Role::operator_), now) == false);
    CHECK(*tokens.create(token("ann", '1', Role::operator_), now) == true); // the same again
    struct Row
    {
        const char* what;
        Token token;
        Errc code;
    };
    Token short_key = token("bob", '2');
    short_key.public_key = "22";
    Token prefixed = token("bob", '2');
    prefixed.public_key = "0x" + key('2');
    const Row rows[] = {
        {"another key for an active name", token("ann", '2', Role::operator_), Errc::already_exists},
        {"another role for an active name", token("ann", '1', Role::admin), Errc::already_exists},
        {"the key of another", token("bob", '1'), Errc::already_exists},
        {"no name", token("", '2'), Errc::invalid_argument},
        {"a name for a terminal", token("a\x1b[2J", '2'), Errc::invalid_argument},
        {"upper case", token("Ann", '2'), Errc::invalid_argument},
        {"no role", token("bob", '2', Role::none), Errc::invalid_argument},
        {"over already", token("bob", '2', Role::viewer, now), Errc::invalid_argument},
        {"for ever", token("bob", '2', Role::viewer, now + 3651 * day), Errc::invalid_argument},
        {"a short key", short_key, Errc::invalid_argument},
        {"a key with a prefix", prefixed, Errc::invalid_argument},
    };
    for (const Row& row : rows)
    {
        CAPTURE(row.what);
        auto created = tokens.create(row.token, now);
        REQUIRE_FALSE(created);
        CHECK(created.error().code == row.code);
    }
    CHECK(tokens.all().size() == 1);

    const std::string id = token("ann", '1').id();
    CHECK(id.size() == 16);
    REQUIRE(tokens.check(id, now));
    CHECK((*tokens.check(id, now))->role == Role::operator_);
    CHECK(tokens.check(id, now + day - 1));
    auto expired = tokens.check(id, now + day);
    REQUIRE_FALSE(expired);
    CHECK(expired.error().code == Errc::unauthenticated);
    CHECK(expired.error().message.find("expired") != std::string::npos);
    CHECK(tokens.check("ffffffffffffffff", now).error().message.find("no token") == 0);

    CHECK(tokens.expired_between(now, now + day - 1).empty());
    CHECK(tokens.expired_between(now + day - 1, now + day).size() == 1);
    CHECK(tokens.expired_between(now + day, now + 2 * day).empty());

    CHECK(tokens.revoke("nobody", now).error().code == Errc::not_found);
    CHECK(*tokens.revoke("ann", now + 5) == false);
    CHECK(*tokens.revoke("ann", now + 6) == true);
    auto revoked = tokens.check(id, now + 7);
    REQUIRE_FALSE(revoked);
    CHECK(revoked.error().message.find("revoked") != std::string::npos);
    CHECK(tokens.expired_between(0, now + 2 * day).empty()); // it did not end by time

    // A revoked name may be used again; the old key stays without rights.
    CHECK(*tokens.create(token("ann", '3'), now + 8) == false);
    CHECK_FALSE(tokens.check(id, now + 9));
    CHECK(tokens.check(token("ann", '3').id(), now + 9));
}

TEST_CASE("the token table on disk is whole or refused")
{
    Tokens tokens;
    REQUIRE(tokens.create(token("ann", '1', Role::admin), now));
    REQUIRE(tokens.create(token("bob", '2'), now));
    REQUIRE(tokens.revoke("bob", now + 1));
    const std::string text = tokens.to_text();
    auto back = Tokens::parse(text);
    REQUIRE(back);
    CHECK(back->to_text() == text);
    CHECK_FALSE(back->check(token("bob", '2').id(), now + 2));
    for (const char* bad : {"", "{}", "[]", R"({"schema":"dstack.bus-tokens/v2","tokens":[]})", R"({"schema":"dstack.bus-tokens/v1"})",
                            R"({"schema":"dstack.bus-tokens/v1","tokens":[{"name":"x","role":"admin"}]})",
                            R"({"schema":"dstack.bus-tokens/v1","tokens":[1]})"})
    {
        CAPTURE(bad);
        auto damaged = Tokens::parse(bad);
        REQUIRE_FALSE(damaged);
        CHECK(damaged.error().code == Errc::data_loss);
    }
    for (std::size_t cut = 1; cut < text.size() - 1; cut += 11)
    {
        CAPTURE(cut);
        CHECK_FALSE(Tokens::parse(text.substr(0, cut)));
    }
    std::string twice = text;
    twice.replace(twice.find(key('2')), 64, key('1'));
    CHECK_FALSE(Tokens::parse(twice));
}

TEST_CASE("a thousand tokens are enough; those that ended make room")
{
    Tokens tokens;
    for (std::size_t i = 0; i < Tokens::max_tokens; ++i)
    {
        Token one = token(("t" + std::to_string(i)).c_str(), '0');
        one.public_key = crypto::to_hex(crypto::sha256("key " + std::to_string(i)));
        REQUIRE(tokens.create(one, now));
    }
    auto full = tokens.create(token("more", '1'), now);
    REQUIRE_FALSE(full);
    CHECK(full.error().code == Errc::resource_exhausted);
    REQUIRE(tokens.revoke("t500", now));
    CHECK(tokens.create(token("more", '1'), now));
    CHECK(tokens.by_name("t500") == nullptr);
    CHECK(tokens.all().size() == Tokens::max_tokens);
}

TEST_CASE("the broker's key is made once, kept, and never replaced in silence")
{
    const Folder folder;
    auto first = load_server_key(folder.path);
    REQUIRE(first);
    struct stat facts = {};
    REQUIRE(::stat((folder.path + "/curve.key").c_str(), &facts) == 0);
    CHECK((facts.st_mode & 07777) == 0600);
    auto again = load_server_key(folder.path);
    REQUIRE(again);
    CHECK(*again == *first);
    REQUIRE(::chmod((folder.path + "/curve.key").c_str(), 0644) == 0);
    CHECK(load_server_key(folder.path).error().code == Errc::failed_precondition);
    REQUIRE(state::write_file_atomic(folder.path + "/curve.key", "abc\n", 0600));
    CHECK(load_server_key(folder.path).error().code == Errc::data_loss);
    CHECK(load_tokens(folder.path)->all().empty());
    REQUIRE(save_tokens(folder.path, "{"));
    CHECK(load_tokens(folder.path).error().code == Errc::data_loss);
}

TEST_CASE("the User-Id of a remote peer carries its key and address, and no rights")
{
    Identity identity;
    identity.token = "0123456789abcdef";
    identity.address = "2001:db8::7";
    identity.role = Role::admin;
    auto back = Identity::from_user_id(identity.user_id());
    REQUIRE(back);
    CHECK(back->token == identity.token);
    CHECK(back->address == identity.address);
    CHECK(back->role == Role::none); // looked up for each message
    CHECK(back->scope() == "token:0123456789abcdef");
    CHECK_FALSE(Identity::from_user_id("token:short:1.2.3.4"));
    CHECK_FALSE(Identity::from_user_id("token:0123456789abcdef"));
}

TEST_CASE("tcp in the broker's configuration is off unless it is asked for")
{
    CHECK_FALSE(parse_config("")->tcp);
    auto config = parse_config("[tcp]\nlisten = \"0.0.0.0:9700\"\nadvertise = \"bus.example\"\n[bus]\njournal = \"/a/b/journal.db\"\n");
    REQUIRE(config);
    CHECK(config->tcp->text() == "0.0.0.0:9700");
    CHECK(config->advertise->text() == "bus.example:9700");
    CHECK(state_directory(*config) == "/a/b");
    for (const char* bad : {"[tcp]\nlisten = \"9700\"\nlisten2 = 1\n", "[tcp]\nlisten = \"*:9700\"\n", "[tcp]\nlisten = \"h:65535\"\n", "[tcp]\nlisten = 9700\n"})
    {
        CAPTURE(bad);
        CHECK_FALSE(parse_config(bad));
    }
}

TEST_CASE("each quota is one connection's, has a name, and is given back")
{
    QuotaLimits limits;
    limits.events = 2;
    limits.event_bytes = 100;
    limits.all_event_bytes = 250;
    limits.reads = 2;
    limits.all_reads = 3;
    limits.waiting_bytes = 1000;
    limits.all_waiting_bytes = 1500;
    limits.malformed = 3;
    Quotas quotas{limits};
    const auto quota_of = [](const Result<Done>& result) -> std::string
    {
        if (result) { return "ok"; }
        CHECK(result.error().code == Errc::resource_exhausted);
        CHECK_FALSE(result.error().hint.empty());
        CHECK(result.error().details.find("\"quota\"") != std::string::npos);
        return result.error().message.substr(0, result.error().message.find(':'));
    };
    CHECK(quota_of(quotas.begin_event("a", 10)) == "ok");
    CHECK(quota_of(quotas.begin_event("a", 95)) == "quota event_bytes_in_flight");
    CHECK(quota_of(quotas.begin_event("a", 10)) == "ok");
    CHECK(quota_of(quotas.begin_event("a", 1)) == "quota events_in_flight");
    CHECK(quota_of(quotas.begin_event("b", 240)) == "quota event_bytes_in_flight"); // the broker's
    CHECK(quota_of(quotas.begin_event("b", 230)) == "ok");                         // one large event is not refused for ever
    quotas.end_event("a", 10);
    CHECK(quota_of(quotas.begin_event("a", 1)) == "ok");

    CHECK(quota_of(quotas.begin_read("a")) == "ok");
    CHECK(quota_of(quotas.begin_read("a")) == "ok");
    CHECK(quota_of(quotas.begin_read("a")) == "quota reads_in_flight");
    CHECK(quota_of(quotas.begin_read("b")) == "ok");
    auto all = quotas.begin_read("c");
    REQUIRE_FALSE(all);
    CHECK(all.error().message == "quota reads_in_flight: the broker has 3 of at most 3");
    quotas.end_read("a");
    CHECK(quota_of(quotas.begin_read("c")) == "ok");

    quotas.waiting("slow")->add(1001);
    CHECK(quota_of(quotas.may_ask("slow")) == "quota bytes_waiting");
    CHECK(quota_of(quotas.begin_read("slow")) == "quota bytes_waiting");
    CHECK(quota_of(quotas.may_ask("other")) == "ok");
    quotas.waiting("other")->add(600);
    CHECK(quota_of(quotas.may_ask("other")) == "quota bytes_waiting"); // the broker is short of room, and it holds some
    CHECK(quota_of(quotas.may_ask("innocent")) == "ok");
    quotas.waiting("slow")->remove(1001);
    CHECK(quotas.waiting_bytes() == 600);
    CHECK(quota_of(quotas.may_ask("other")) == "ok");
    quotas.waiting("other")->remove(600);

    CHECK_FALSE(quotas.malformed("bad", now));
    CHECK_FALSE(quotas.malformed("bad", now));
    CHECK_FALSE(quotas.ignored("bad"));
    CHECK(quotas.malformed("bad", now));
    CHECK(quotas.ignored("bad"));
    CHECK_FALSE(quotas.malformed("bad", now)); // said once
    CHECK_FALSE(quotas.ignored("good"));

    quotas.end_event("a", 10);
    quotas.end_event("a", 1);
    quotas.end_event("b", 230);
    quotas.end_read("a");
    quotas.end_read("b");
    quotas.end_read("c");
    quotas.sweep(now);
    CHECK(quotas.connections() == 1); // "bad"
    quotas.sweep(now + limits.malformed_memory_ms + 1);
    CHECK(quotas.connections() == 0);
}

TEST_CASE("calls count with their bytes, on the connection that made them")
{
    Calls calls;
    const auto call = [](const char* route, std::size_t bytes)
    {
        Call out;
        out.caller_route = route;
        out.body = std::string(bytes, 'x');
        return out;
    };
    const std::size_t mib = 1024 * 1024;
    std::vector<std::uint64_t> mine;
    for (std::size_t i = 0; i < Calls::max_bytes_per_route / mib; ++i)
    {
        auto added = calls.add(call("a", mib));
        REQUIRE(added);
        mine.push_back(*added);
    }
    CHECK(calls.add(call("a", 1)).error().message.find("quota call_bytes_in_flight") == 0);
    CHECK(calls.add(call("b", 1)));
    calls.find(mine[0])->caller_route = "a2"; // the asker came back on another connection
    REQUIRE(calls.take(mine[0]));
    CHECK(calls.add(call("a", mib)));
}

TEST_CASE("refusals are said once per kind and second, and none is forgotten")
{
    RefusalLimiter limiter;
    std::uint64_t suppressed = 99;
    CHECK(limiter.admit("connect", now, suppressed));
    CHECK(suppressed == 0);
    CHECK_FALSE(limiter.admit("connect", now + 1, suppressed));
    CHECK(limiter.admit("token", now + 1, suppressed)); // another kind
    CHECK_FALSE(limiter.admit("connect", now + 999, suppressed));
    CHECK(limiter.overdue(now + 999).empty());
    CHECK(limiter.admit("connect", now + 1000, suppressed));
    CHECK(suppressed == 2);
    CHECK_FALSE(limiter.admit("connect", now + 1001, suppressed));
    const auto overdue = limiter.overdue(now + 2001);
    REQUIRE(overdue.size() == 1);
    CHECK(overdue.at("connect") == 1);
    CHECK(limiter.overdue(now + 5000).empty());
}
