#include "services/auth/policy_check.hpp"
#include "services/auth/json_cursor.hpp"
#include "services/auth/json_text.hpp"
#include "services/auth/policy.hpp"
#include "shared/base/time.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"
#include <optional>

namespace dstack::auth
{

namespace
{

/// What a walk over a valid policy finds.
class Walk
{
  public:
    Walk(std::string_view text, std::uint64_t now_ms, PolicyReport& out) : in_(text, "policy"), now_ms_(now_ms), out_(out) {}

    void run()
    {
        bool images = false;
        bool statuses = false;
        bool advisories = false;
        std::string_view key;
        in_.enter_object();
        while (in_.next_key(key))
        {
            const std::string name{key};
            if (name == "osImages") { images = list(name); }
            else if (name == "allowedTcbStatuses")
            {
                list(name);
                statuses = true;
            }
            else if (name == "allowedAdvisoryIds") { advisories = list(name); }
            else if (name == "tcbGrace") { graces(); }
            else if (name == "kms") { part(name, "mrAggregated"); }
            else if (name == "apps") { apps(); }
            else { in_.skip(); }
        }
        top(images, statuses, advisories);
    }

  private:
    void add(bool denies, std::string place, std::size_t line, std::string message, std::string member)
    {
        out_.findings.push_back({denies, std::move(place), line, std::move(message), std::move(member)});
    }

    void top(bool images, bool statuses, bool advisories)
    {
        if (!images)
        {
            add(true, "", 1, "osImages is empty: upstream's dstack-auth allowed any OS image, here none is",
                R"("osImages": {"any": true})");
        }
        if (!statuses)
        {
            add(false, "", 1, "allowedTcbStatuses is missing: upstream's dstack-auth checked no TCB status, here (as in "
                              "auth-simple) only UpToDate is allowed",
                R"("allowedTcbStatuses": {"any": true})");
        }
        if (!advisories)
        {
            add(false, "", 1, "allowedAdvisoryIds is empty: upstream's dstack-auth ignored advisories, here (as in "
                              "auth-simple) a platform with one is denied",
                R"("allowedAdvisoryIds": {"any": true})");
        }
    }

    /// The end of an entry (or of an "any"), if it has one that is over.
    void object_entry(const std::string& place)
    {
        std::string_view key;
        std::string value;
        std::optional<std::uint64_t> end;
        std::size_t line = 0;
        in_.enter_object();
        while (in_.next_key(key))
        {
            const std::string name{key};
            std::string_view text;
            if (name == "value" || name == "status")
            {
                in_.read(text);
                value = text;
                line = in_.line();
            }
            else if (name == "expires" || name == "until")
            {
                in_.read(text);
                end = parse_time(text);
                line = in_.line();
            }
            else { in_.skip(); }
        }
        if (!end || *end > now_ms_) { return; }
        add(false, place, line, "the entry " + (value.empty() ? "\"any\"" : value) + " expired at " + rfc3339(*end) + ": it allows nothing any more", "");
    }

    /// Whether the list allows anything at all.
    bool list(const std::string& place)
    {
        bool any = false;
        if (in_.type() == JsonCursor::Type::object)
        {
            JsonCursor look = in_; // "any" itself, before its end is looked at
            std::string_view key;
            look.enter_object();
            while (look.next_key(key))
            {
                if (key == "any") { look.read(any); }
                else { look.skip(); }
            }
            if (any) { object_entry(place); }
            else { in_.skip(); }
            return any;
        }
        in_.enter_array();
        while (in_.next_item())
        {
            any = true;
            if (in_.type() == JsonCursor::Type::object) { object_entry(in_.path()); }
            else { in_.skip(); }
        }
        return any;
    }

    void graces()
    {
        if (in_.type() == JsonCursor::Type::object) { return object_entry("tcbGrace"); }
        in_.enter_array();
        while (in_.next_item()) { object_entry(in_.path()); }
    }

    /// The KMS or one app: its hashes, and its devices, of which none meant any.
    void part(const std::string& place, std::string_view hashes)
    {
        bool devices = false;
        bool any = false;
        in_.type();
        const std::size_t line = in_.line();
        std::string_view key;
        in_.enter_object();
        while (in_.next_key(key))
        {
            const std::string name{key};
            if (name == hashes) { list(place + "." + name); }
            else if (name == "devices") { devices = list(place + "." + name); }
            else { in_.read(any); }
        }
        if (devices || any) { return; }
        add(true, place, line, "devices is empty and allowAnyDevice is not set: upstream allowed any device, here none is",
            R"("allowAnyDevice": true)");
    }

    void apps()
    {
        std::string_view key;
        in_.enter_object();
        while (in_.next_key(key))
        {
            ++out_.apps;
            part("apps." + std::string{key}, "composeHashes");
        }
    }

    JsonCursor in_;
    std::uint64_t now_ms_;
    PolicyReport& out_;
};

} // namespace

PolicyReport check_policy(std::string_view text, std::uint64_t now_ms)
{
    PolicyReport out;
    out.hash = crypto::to_hex(crypto::sha256(text));
    auto policy = parse_policy(text);
    if (!policy)
    {
        out.error = policy.error().message;
        return out;
    }
    Walk{text, now_ms, out}.run();
    return out;
}

std::string report_text(const PolicyReport& report, std::string_view file)
{
    std::string out;
    if (!report.error.empty())
    {
        ((out += file) += ": no valid policy: ") += report.error;
        return out + "\n  with it every boot is denied; repair that place\n";
    }
    std::size_t denies = 0;
    for (const Finding& finding : report.findings)
    {
        denies += finding.denies ? 1 : 0;
        ((out += file) += ", line ") += std::to_string(finding.line);
        if (!finding.place.empty()) { (out += ", ") += finding.place; }
        ((out += finding.denies ? ": " : ": note: ") += finding.message) += "\n";
        if (!finding.add.empty()) { ((out += finding.denies ? "  to allow that, add: " : "  to go on so, add: ") += finding.add) += "\n"; }
    }
    ((out += file) += ": a valid policy, ") += std::to_string(report.apps) + (report.apps == 1 ? " app" : " apps");
    out += denies == 0 ? "; nothing in it relies on \"empty means any\"\n"
                       : "; " + std::to_string(denies) + (denies == 1 ? " place relies" : " places rely") + " on \"empty means any\"\n";
    return out;
}

std::string report_json(const PolicyReport& report)
{
    std::string out = report.error.empty() ? R"({"valid":true,"error":)" : R"({"valid":false,"error":)";
    append_json_string(out, report.error);
    out += R"(,"policyHash":)";
    append_json_string(out, report.hash);
    out += R"(,"apps":)" + std::to_string(report.apps) + R"(,"findings":[)";
    for (const Finding& finding : report.findings)
    {
        if (out.back() != '[') { out += ','; }
        out += finding.denies ? R"({"denies":true,"place":)" : R"({"denies":false,"place":)";
        append_json_string(out, finding.place);
        out += R"(,"line":)" + std::to_string(finding.line) + R"(,"message":)";
        append_json_string(out, finding.message);
        out += R"(,"add":)";
        append_json_string(out, finding.add);
        out += '}';
    }
    return out + "]}";
}

} // namespace dstack::auth
