#include "services/dstack/document.hpp"
#include "services/dstack/exit_code.hpp"
#include "services/dstack/options.hpp"
#include "services/dstack/port_spec.hpp"
#include "services/dstack/text.hpp"
#include "tests/catch.hpp"
#include <nlohmann/json.hpp>

using namespace dstack;
using namespace dstack::cli;

TEST_CASE("port specs that are understood")
{
    struct Row
    {
        const char* text;
        const char* protocol;
        const char* address;
        std::uint32_t host;
        std::uint32_t vm;
    };
    const Row rows[] = {
        {"80", "tcp", "127.0.0.1", 0, 80},
        {"auto:80", "tcp", "127.0.0.1", 0, 80},
        {"0:80", "tcp", "127.0.0.1", 0, 80},
        {":80", "tcp", "127.0.0.1", 0, 80},
        {"8080:80", "tcp", "127.0.0.1", 8080, 80},
        {"udp:53:5353", "udp", "127.0.0.1", 53, 5353},
        {"tcp::80", "tcp", "127.0.0.1", 0, 80},
        {"tcp:0.0.0.0:8080:80", "tcp", "0.0.0.0", 8080, 80},
        {"tcp:0.0.0.0:auto:80", "tcp", "0.0.0.0", 0, 80},
        {"tcp:[::1]:8080:80", "tcp", "::1", 8080, 80},
        {"udp:[fe80::1]::65535", "udp", "fe80::1", 0, 65535},
    };
    for (const Row& row : rows)
    {
        INFO(row.text);
        auto port = parse_port_spec(row.text);
        REQUIRE(port);
        CHECK(port->protocol == row.protocol);
        CHECK(port->host_address == row.address);
        CHECK(port->host_port == row.host);
        CHECK(port->vm_port == row.vm);
    }
}

TEST_CASE("port specs that are refused")
{
    for (const char* text : {"", ":", "0", "65536", "80a", "-1", "+80", " 80", "8080:", "8080:0", "70000:80", "sctp:1:2", "TCP:1:2", "1:2:3",
                             "tcp:localhost:1:2", "tcp:::1:8080:80", "tcp:[127.0.0.1]:1:2", "tcp:[::1:1:2", "tcp:[::1]x:1:2", "tcp:1.2.3:1:2",
                             "tcp:1.2.3.4:1:2:3", "[::1]:80", "99999999999999999999:80"})
    {
        INFO(text);
        auto port = parse_port_spec(text);
        REQUIRE(!port);
        CHECK(port.error().code == Errc::invalid_argument);
        CHECK(port.error().message.starts_with("invalid --port '"));
    }
}

TEST_CASE("ranges of ports")
{
    const auto text = [](std::string_view spec)
    {
        auto ports = parse_port_specs(spec);
        if (!ports) { return ports.error().message; }
        std::string out;
        for (const auto& port : *ports)
        {
            out += (out.empty() ? "" : " ") + port.protocol + "," + port.host_address + "," + std::to_string(port.host_port) + "," + std::to_string(port.vm_port);
        }
        return out;
    };
    CHECK(text("8000-8002:9000-9002") == "tcp,127.0.0.1,8000,9000 tcp,127.0.0.1,8001,9001 tcp,127.0.0.1,8002,9002");
    CHECK(text("80-81") == "tcp,127.0.0.1,0,80 tcp,127.0.0.1,0,81");
    CHECK(text("auto:80-80") == "tcp,127.0.0.1,0,80");
    CHECK(text("udp:[::1]:5000-5001:53-54") == "udp,::1,5000,53 udp,::1,5001,54");
    CHECK(text("tcp:0.0.0.0::80-81") == "tcp,0.0.0.0,0,80 tcp,0.0.0.0,0,81");
    CHECK(text("8080:80") == "tcp,127.0.0.1,8080,80");
    CHECK(text("8000-8001:80") == "invalid --port '8000-8001:80': the host's ports are a range, the guest's are not");
    CHECK(text("8000:80-81") == "invalid --port '8000:80-81': the guest's ports are a range, the host's are not (`auto` is fine)");
    CHECK(text("8000-8003:80-81") == "invalid --port '8000-8003:80-81': the two ranges differ in length");
    CHECK(text("sctp:8000-8001:80-81") == "invalid --port 'sctp:8000-8001:80-81': the protocol is not tcp or udp");
    CHECK(text("1-300") == "invalid --port '1-300': a range has at most 256 ports");
    for (const char* refused : {"0-3", "5-4", "80-", "-80", "1-2-3", "1-70000", "65530-65540:1-11", "a-b", "0-1:1-2", "tcp:nowhere:1-2:1-2", "-"})
    {
        INFO(refused);
        CHECK_FALSE(parse_port_specs(refused));
    }
}

TEST_CASE("exit codes are the contract's")
{
    CHECK(exit_code(Errc::invalid_argument) == 2);
    CHECK(exit_code(Errc::not_found) == 3);
    CHECK(exit_code(Errc::unavailable) == 3);
    CHECK(exit_code(Errc::permission_denied) == 4);
    CHECK(exit_code(Errc::already_exists) == 5);
    CHECK(exit_code(Errc::failed_precondition) == 7);
    CHECK(exit_code(Errc::resource_exhausted) == 7);
    CHECK(exit_code(Errc::deadline_exceeded) == 8);
    CHECK(exit_code(Errc::internal) == 1);
    CHECK(exit_code_of_operation(Errc::permission_denied, true, "boot") == 9);
    CHECK(exit_code_of_operation(Errc::permission_denied, false, "allow") == 4);
    CHECK(exit_code_of_operation(Errc::failed_precondition, false, "boot") == 10);
    CHECK(exit_code_of_operation(Errc::failed_precondition, false, "image") == 7);
    CHECK(exit_code_of_operation(Errc::deadline_exceeded, false, "boot") == 8);
}

TEST_CASE("hostile text cannot drive the terminal")
{
    CHECK(printable("plain \xc3\xa9\tok") == "plain \xc3\xa9\tok");
    CHECK(printable("\x1b[2J") == "\\x1b[2J");
    CHECK(printable("a\nb\r\x7f") == "a\\x0ab\\x0d\\x7f");
    CHECK(printable("\xc2\x9b" "31m") == "\\xc2\\x9b31m"); // CSI as one C1 character
    CHECK(printable("\x9b") == "\\x9b");
    CHECK(printable("\xf0\x9f\x98\x80") == "\xf0\x9f\x98\x80");
    CHECK(printable("\xed\xa0\x80") == "\\xed\\xa0\\x80");
    CHECK(printable("\xc3") == "\\xc3");
    CHECK(printable("") == "");
}

TEST_CASE("times, durations, sizes")
{
    auto time = parse_time("2023-11-14T22:13:20.007Z");
    REQUIRE(time);
    CHECK(*time == 1'700'000'000'007);
    CHECK(*parse_time("2023-11-14T22:13:20Z") == 1'700'000'000'000);
    CHECK(*parse_time("2023-11-14T22:13:20.5+00:00") == 1'700'000'000'500);
    CHECK(*parse_time("2023-11-14T23:13:20+01:00") == 1'700'000'000'000);
    CHECK(*parse_time("2023-11-14 16:43:20.25-05:30") == 1'700'000'000'250);
    for (const char* bad : {"", "2023", "2023-11-14T22:13:20", "2023-11-14T22:13:20.Z", "2023-11-14T22:13:20+1:00", "2023-11-14T22:13:20+24:00",
                            "2023-11-14T22:13:20+0100", "2023-02-31T22:13:20Z", "2023-1-14T22:13:20Z", "1969-12-31T23:59:59Z"})
    {
        INFO(bad);
        CHECK(!parse_time(bad));
    }
    CHECK(age("2023-11-14T22:13:20Z", 1'700'000'005'999) == "5s");
    CHECK(age("2023-11-14T22:13:20Z", 1'699'999'000'000) == "0s");
    CHECK(age("2023-11-14T22:13:20Z", 1'700'000'000'000 + 5 * 60'000) == "5m");
    CHECK(age("2023-11-14T22:13:20Z", 1'700'000'000'000 + 5 * 3'600'000ULL) == "5h");
    CHECK(age("2023-11-14T22:13:20Z", 1'700'000'000'000 + 5 * 86'400'000ULL) == "5d");
    CHECK(age("", 1) == "-");
    CHECK(age("1970-01-01T00:00:00.000Z", 1'700'000'000'000) == "-");
    CHECK(*parse_duration("90") == 90'000);
    CHECK(*parse_duration("250ms") == 250);
    CHECK(*parse_duration("2h") == 7'200'000);
    for (const char* bad : {"", "s", "5x", "-5s", "1.5h", "99999999999d"}) { CHECK(!parse_duration(bad)); }
    CHECK(*parse_mebibytes("512") == 512);
    CHECK(*parse_mebibytes("1G") == 1024);
    CHECK(*parse_mebibytes("3MiB") == 3);
    for (const char* bad : {"", "M", "1T", "1g", "-1"}) { CHECK(!parse_mebibytes(bad)); }
}

TEST_CASE("tables and event fields")
{
    CHECK(table({{"A", "LONG"}, {"h\xc3\xa9llo", "x"}}) == "A      LONG\nh\xc3\xa9llo  x\n");
    CHECK(table({{"a", ""}}) == "a\n");
    CHECK(fields_of(R"({"name":"hello","step":"boot","detail":"two words","n":3,"ok":false,"none":"","list":[],"o":[1]})", "hello") ==
          "step=boot detail=\"two words\" n=3 ok=false o=[1]");
    CHECK(fields_of(R"({"x":"\u001b[2J"})", "") == "x=\\x1b[2J");
    CHECK(fields_of("no json", "").empty());
}

namespace
{
std::variant<Options, Leave> parse(std::vector<const char*> words)
{
    words.insert(words.begin(), "dstack");
    return parse_options(static_cast<int>(words.size()), words.data());
}
Options good(std::vector<const char*> words)
{
    auto parsed = parse(std::move(words));
    if (const auto* leave = std::get_if<Leave>(&parsed)) { FAIL(leave->error); }
    return std::get<Options>(parsed);
}
} // namespace

TEST_CASE("global flags stand before or after the verb")
{
    const Options before = good({"--json", "--prefix", "/p", "-q", "ls"});
    const Options after = good({"ls", "--json", "--prefix", "/p", "-q"});
    for (const Options& o : {before, after})
    {
        CHECK(o.verb == "ls");
        CHECK(o.json);
        CHECK(o.quiet);
        CHECK(o.prefix == "/p");
    }
    CHECK(good({"apps"}).verb == "ls");
    CHECK(good({"ps"}).verb == "ls");
    CHECK(good({"run", "-n", "x", "-c", "f"}).verb == "deploy");
    CHECK(good({"--version"}).verb == "version");
    CHECK(good({"rm", "hello", "--yes"}).yes);
    CHECK(good({"rm", "-y", "hello"}).app == "hello");
}

TEST_CASE("the words of audit, why and policy test")
{
    const Options list = good({"audit", "list", "--app", "hello", "--denied", "--since", "2h", "--limit", "5", "--json"});
    CHECK(list.verb == "audit list");
    CHECK((list.app == "hello" && list.denied && list.since == "2h" && list.limit == 5 && list.json));
    CHECK(good({"audit", "show", "12"}).decision == 12);
    CHECK(good({"audit", "export", "--kind", "policy"}).kind == "policy");
    const Options verify = good({"audit", "verify", "--dir", "/d", "--key", "/k", "--expect", "1:aa", "--prefix", "/p"});
    CHECK((verify.verb == "audit verify" && verify.directory == "/d" && verify.key_file == "/k" && verify.expect == "1:aa" && verify.prefix == "/p"));
    CHECK(good({"why", "hello"}).app == "hello");
    const Options test = good({"policy", "test", "--last", "9", "--with", "new.json", "--exit-code"});
    CHECK((test.verb == "policy test" && test.last == 9 && test.with == "new.json" && test.with_exit_code));
    for (const std::vector<const char*>& words : std::vector<std::vector<const char*>>{{"audit"},
                                                                                      {"audit", "show"},
                                                                                      {"audit", "show", "x"},
                                                                                      {"audit", "list", "--kind", "vm"},
                                                                                      {"audit", "list", "--denied", "--allowed"},
                                                                                      {"why"},
                                                                                      {"policy", "test"},
                                                                                      {"policy", "test", "--last", "0"},
                                                                                      {"policy", "test", "--last", "1", "--decision", "1"},
                                                                                      {"policy", "test", "--boot-info", "-", "--with", "-"}})
    {
        const auto parsed = parse(words);
        const auto* leave = std::get_if<Leave>(&parsed);
        REQUIRE(leave);
        CHECK(leave->exit_code == exit_usage);
    }
}

TEST_CASE("deploy's words")
{
    const Options o = good({"deploy", "-n", "hello", "-c", "f.yaml", "--port", "auto:80", "--port", "udp:53:53", "--memory", "1G", "--vcpu", "2", "--disk", "4",
                            "--no-allow", "--no-kms", "--no-wait", "--timeout", "2m", "--dry-run", "--image", "i"});
    CHECK(o.name == "hello");
    CHECK(o.compose == "f.yaml");
    REQUIRE(o.ports.size() == 2);
    CHECK(o.ports[1].protocol == "udp");
    CHECK(o.memory_mb == 1024);
    CHECK(o.vcpu == 2);
    CHECK(o.disk_gb == 4);
    CHECK_FALSE(o.allow);
    CHECK_FALSE(o.kms);
    CHECK_FALSE(o.wait);
    CHECK(o.timeout_ms == 120'000);
    CHECK(o.dry_run);
    const Options plain = good({"deploy", "f.yaml", "-n", "hello"});
    CHECK(plain.compose == "f.yaml");
    CHECK(plain.allow);
    CHECK(plain.wait);
    const Options stream = good({"events", "--from", "0", "--no-follow", "--json", "--type", "vm."});
    CHECK_FALSE(stream.follow);
    CHECK(stream.from == "0");
}

TEST_CASE("mistakes are usage, in one sentence, as JSON when that was asked for")
{
    for (const auto& words : std::vector<std::vector<const char*>>{{},
                                                                   {"deplo"},
                                                                   {"deploy"},
                                                                   {"deploy", "-n", "x", "-c", "f", "--port", "bad"},
                                                                   {"deploy", "-n", "x", "-c", "f", "--memory", "lots"},
                                                                   {"info"},
                                                                   {"ls", "--frob"},
                                                                   {"logs", "x", "--lines", "0"},
                                                                   {"--host", "h:0", "ls"},
                                                                   {"--host", "h", "--prefix", "/x", "ls"},
                                                                   {"deploy", "-n", "x", "-c", "-", "--token-file", "-"},
                                                                   {"--instance", "x", "ls"},
                                                                   {"events", "--severity", "loud"}})
    {
        auto parsed = parse(words);
        const auto* leave = std::get_if<Leave>(&parsed);
        REQUIRE(leave != nullptr);
        CHECK(leave->exit_code == 2);
        CHECK_FALSE(leave->error.empty());
        CHECK_FALSE(leave->json);
    }
    auto remote = parse({"ls", "--host", "[2001:db8::7]:9700", "--token-file", "f"});
    REQUIRE(std::holds_alternative<Options>(remote));
    CHECK(std::get<Options>(remote).host == "[2001:db8::7]:9700");
    CHECK(std::get<Options>(remote).token_file == "f");
    auto parsed = parse({"ls", "--frob", "--json"});
    CHECK(std::get<Leave>(parsed).json);
    auto help = parse({"deploy", "--help"});
    CHECK(std::get<Leave>(help).exit_code == 0);
    CHECK(std::get<Leave>(help).out.find("--no-allow") != std::string::npos);
    auto top = parse({"--help"});
    CHECK(std::get<Leave>(top).out.find("Examples:") < 5);
}

TEST_CASE("documents are one line of JSON with their schema")
{
    schema::App app;
    app.name = "hello";
    app.vm_id = "v";
    app.ports = {{"udp", "127.0.0.1", 53, 53}, {"tcp", "0.0.0.0", 18000, 80}};
    const auto apps = nlohmann::json::parse(document("apps", apps_json({app}), {"careful"}));
    CHECK(apps["schema"] == "dstack.apps/v1");
    CHECK(apps["data"]["apps"][0]["vmId"] == "v");
    CHECK(apps["data"]["apps"][0]["ports"][1]["hostPort"] == 18000);
    CHECK(apps["data"]["apps"][0]["url"] == "http://127.0.0.1:18000/");
    CHECK(apps["warnings"][0] == "careful");
    CHECK(url_of({{"tcp", "::1", 1, 1}}) == "http://[::1]:1/");
    CHECK(url_of({{"tcp", "127.0.0.1", 0, 1}}).empty());
    const auto error = nlohmann::json::parse(error_document(Error{Errc::not_found, "no \xff", "hint", R"({"a":1})"}));
    CHECK(error["schema"] == "dstack.error/v1");
    CHECK(error["error"]["code"] == "not_found");
    CHECK(error["error"]["details"]["a"] == 1);
    CHECK(nlohmann::json::parse(error_document(Error{}))["error"]["details"].is_null());
}
