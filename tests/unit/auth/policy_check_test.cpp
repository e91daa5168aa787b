#include "services/auth/json_cursor.hpp"
#include "services/auth/metrics.hpp"
#include "services/auth/policy_check.hpp"
#include "services/auth/standalone.hpp"
#include "tests/catch.hpp"
#include "tests/unit/auth/sample.hpp"
#include <nlohmann/json.hpp>

using namespace dstack::auth;
using sample::hex;

TEST_CASE("each place that relied on empty means any is named, with what to add")
{
    struct Row
    {
        std::string text;
        std::vector<std::string> places; ///< that deny here, in the order of the file; the top comes last
    };
    const std::string app = hex('1', 40);
    const std::string images = R"("osImages":[")" + hex('b') + R"("])";
    const Row rows[] = {
        {"{}", {""}},
        {"{" + images + "}", {}},
        {R"({"osImages":{"any":true}})", {}},
        {R"({"osImages":{"any":false}})", {""}},
        {"{" + images + R"(,"kms":{}})", {"kms"}},
        {"{" + images + R"(,"kms":{"devices":[]}})", {"kms"}},
        {"{" + images + R"(,"kms":{"devices":[],"allowAnyDevice":false}})", {"kms"}},
        {"{" + images + R"(,"kms":{"allowAnyDevice":true}})", {}},
        {"{" + images + R"(,"kms":{"devices":[")" + hex('e') + R"("]}})", {}},
        {"{" + images + R"(,"kms":{"devices":{"any":true}}})", {}},
        {"{" + images + R"(,"apps":{")" + app + R"(":{"composeHashes":[]}}})", {"apps." + app}},
        {R"({"apps":{")" + app + R"(":{},"0x)" + hex('2', 40) + R"(":{"devices":[]}},"kms":{}})",
         {"apps." + app, "apps.0x" + hex('2', 40), "kms", ""}},
    };
    for (const Row& row : rows)
    {
        CAPTURE(row.text);
        const PolicyReport report = check_policy(row.text, 1);
        CHECK(report.error.empty());
        std::vector<std::string> places;
        for (const Finding& finding : report.findings)
        {
            if (!finding.denies) { continue; }
            places.push_back(finding.place);
            CHECK_FALSE(finding.add.empty());
        }
        CHECK(places == row.places);
        CHECK(nlohmann::json::accept(report_json(report)));
        CHECK((report_text(report, "f").find("nothing in it relies") != std::string::npos) == row.places.empty());
    }
    const PolicyReport wrong = check_policy("{]", 1);
    CHECK_FALSE(wrong.error.empty());
    CHECK(report_text(wrong, "f").starts_with("f: no valid policy: "));
}

TEST_CASE("what is added makes the place as open as it was")
{
    const std::string text = R"({"osImages":[],"kms":{"mrAggregated":[],"devices":[]}})";
    auto document = nlohmann::json::parse(text);
    for (const Finding& finding : check_policy(text, 1).findings)
    {
        if (!finding.denies) { continue; }
        const auto member = nlohmann::json::parse("{" + finding.add + "}");
        auto& place = finding.place.empty() ? document : document[finding.place];
        place.update(member);
    }
    for (const Finding& finding : check_policy(document.dump(), 1).findings) { CHECK_FALSE(finding.denies); }
}

TEST_CASE("entries that have ended are told of, with their line")
{
    const std::string text = "{\"osImages\": [\n\"" + hex('b') + "\",\n{\"value\": \"" + hex('c') +
                             "\",\n \"expires\": \"2026-01-01T00:00:00Z\"}],\n\"tcbGrace\": {\"status\": \"X\", \"until\": \"2026-01-01T00:00:00Z\"}}";
    constexpr std::uint64_t end = 1767225600000;
    std::vector<std::size_t> lines;
    for (const Finding& finding : check_policy(text, end).findings)
    {
        if (finding.message.find("expired at 2026-01-01T00:00:00.000Z") != std::string::npos) { lines.push_back(finding.line); }
    }
    CHECK(lines == std::vector<std::size_t>{4, 5});
    for (const Finding& finding : check_policy(text, end - 1).findings) { CHECK(finding.message.find("expired") == std::string::npos); }
}

TEST_CASE("the cursor takes what JSON is, and nothing else")
{
    const char* texts[] = {
        "{}", "[]", "0", "-0", "1.5e+3", "1E5", "-1.0e-2", "true", "false", "null", "\"\"", R"("\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00")",
        " { \"a\" : [ 1 , { \"b\" : null } ] , \"c\" : \"\xc3\xa9\" } ", "[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]",
        // and what it is not
        "", " ", "{", "}", "[", "{]", "[1,]", "[,1]", "{,}", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{a:1}", "{'a':1}", "{1:1}", "01", "-", "+1", ".5",
        "1.", "1e", "0x1", "NaN", "tru", "truee", "nul", "TRUE", "\"", "\"\\\"", "\"\\x\"", "\"\\u12\"", "\"\\u12g4\"", "\"\\ud800\"", "\"\\udc00\"",
        "\"\\ud800\\u0041\"", "\"a\nb\"", "\"\t\"", "1 2", "{} x", "[1 2]", "{\"a\" 1}", "\"\xff\"", "\"\xc3\"", "\xef\xbb\xbf{}", "//c\n1", "[1]/**/",
        "\"1234567\\\"", "\"12345678", "\"1234567\x01\"", "\"123456789\\n12345678\"",
    };
    for (const std::string text : texts)
    {
        CAPTURE(text);
        JsonCursor cursor{text, "text"};
        cursor.skip();
        const bool fine = cursor.end() && !cursor.failed();
        // their reader takes a byte order mark; ours does not
        const bool expected = nlohmann::json::accept(text) && !text.starts_with("\xef\xbb\xbf");
        CHECK(fine == expected);
        CHECK(cursor.complaint().empty() == fine);
    }
    JsonCursor deep{std::string_view{"[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]"}, "text"};
    CHECK_FALSE(deep.skip());
    CHECK(deep.complaint() == "no valid JSON: nested too deeply");
    JsonCursor escapes{R"("a\u0041\ud83d\ude00\n")", "text"};
    std::string_view value;
    REQUIRE(escapes.read(value));
    CHECK(value == "aA\xf0\x9f\x98\x80\n");
}

TEST_CASE("a command line of its own")
{
    using Kind = Plan::Kind;
    struct Row
    {
        std::vector<std::string_view> words;
        Kind kind;
    };
    const Row rows[] = {
        {{}, Kind::daemon},
        {{"--config", "x"}, Kind::daemon},
        {{"--standalone", "--help"}, Kind::daemon},
        {{"--standalone", "--policy", "p", "--listen", "127.0.0.1:80"}, Kind::standalone},
        {{"--listen", "[::1]:80", "--ledger", "l", "--debug", "--policy", "p", "--standalone"}, Kind::standalone},
        {{"--standalone", "--policy", "p"}, Kind::wrong},
        {{"--standalone", "--listen", "127.0.0.1:80"}, Kind::wrong},
        {{"--standalone", "--policy", "p", "--listen", "80"}, Kind::wrong},
        {{"--standalone", "--policy", "p", "--listen", ":80"}, Kind::wrong},
        {{"--standalone", "--policy", "p", "--listen", "127.0.0.1:"}, Kind::wrong},
        {{"--standalone", "--policy", "p", "--listen", "127.0.0.1:65536"}, Kind::wrong},
        {{"--standalone", "--policy", "p", "--listen", "::1:80"}, Kind::wrong},
        {{"--standalone", "--policy"}, Kind::wrong},
        {{"--standalone", "--polcy", "p"}, Kind::wrong},
        {{"--standalone", "--config", "p"}, Kind::wrong},
        {{"--check-policy", "p"}, Kind::check_policy},
        {{"--check-policy", "p", "--json"}, Kind::check_policy},
        {{"--check-policy"}, Kind::wrong},
        {{"--check-policy", ""}, Kind::wrong},
    };
    for (const Row& row : rows)
    {
        const Plan plan = plan_of(row.words);
        CAPTURE(plan.error);
        CHECK(plan.kind == row.kind);
        CHECK(plan.error.empty() == (plan.kind != Kind::wrong));
    }
    const Plan plan = plan_of(rows[4].words);
    CHECK(plan.config.listen == "::1");
    CHECK(plan.config.port == 80);
    CHECK(plan.config.ledger_dir == "l");
    CHECK(plan.config.policy_file == "p");
    CHECK(plan.debug);
}

TEST_CASE("metrics are counters by kind, rule and result, and a histogram that adds up")
{
    Metrics metrics;
    metrics.count("app", "device", true, 90);
    metrics.count("app", "device", true, 101);
    metrics.count("kms", "os_image", false, 20'000'000);
    std::string text;
    metrics.append_to(text);
    for (const char* line :
         {"dstack_auth_decisions_total{kind=\"app\",rule=\"device\",result=\"allowed\"} 2\n", "_bucket{le=\"0.0001\"} 1\n", "_bucket{le=\"0.00025\"} 2\n",
          "dstack_auth_decisions_total{kind=\"kms\",rule=\"os_image\",result=\"denied\"} 1\n", "_bucket{le=\"10.0\"} 2\n", "_bucket{le=\"+Inf\"} 3\n",
          "_seconds_sum 20.000191\n", "_seconds_count 3\n"})
    {
        CAPTURE(line);
        CHECK(text.find(line) != std::string::npos);
    }
}
