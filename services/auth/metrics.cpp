#include "services/auth/metrics.hpp"

namespace dstack::auth
{

namespace
{

/// Microseconds as seconds: "0.00025".
std::string seconds(std::uint64_t us)
{
    std::string fraction = std::to_string(us % 1'000'000);
    fraction.insert(0, 6 - fraction.size(), '0');
    while (fraction.size() > 1 && fraction.back() == '0') { fraction.pop_back(); }
    return std::to_string(us / 1'000'000) + "." + fraction;
}

void append_head(std::string& out, std::string_view name, std::string_view type, std::string_view help)
{
    ((((out += "# TYPE ") += name) += ' ') += type) += '\n';
    if (name.ends_with("_seconds")) { ((out += "# UNIT ") += name) += " seconds\n"; }
    ((((out += "# HELP ") += name) += ' ') += help) += '\n';
}

} // namespace

void append_gauge(std::string& out, std::string_view name, std::string_view help, std::string_view value)
{
    append_head(out, name, "gauge", help);
    (((out += name) += ' ') += value) += '\n';
}

void Metrics::count(std::string_view kind, std::string_view rule, bool allowed, std::uint64_t took_us)
{
    sum_us_ += took_us;
    std::size_t bucket = 0;
    while (bucket < bounds_us.size() && took_us > bounds_us[bucket]) { ++bucket; }
    ++buckets_[bucket];
    for (Decisions& one : decisions_)
    {
        if (one.allowed != allowed || one.rule != rule || one.kind != kind) { continue; }
        ++one.count;
        return;
    }
    decisions_.push_back({std::string{kind}, std::string{rule}, allowed, 1});
}

void Metrics::append_to(std::string& out) const
{
    append_head(out, "dstack_auth_decisions", "counter", "Answers to the KMS, by question, by the rule that decided, and by result.");
    for (const Decisions& one : decisions_)
    {
        out += "dstack_auth_decisions_total{kind=\"" + one.kind + "\",rule=\"" + one.rule + "\",result=\"" +
               (one.allowed ? "allowed" : "denied") + "\"} " + std::to_string(one.count) + "\n";
    }
    append_head(out, "dstack_auth_decision_duration_seconds", "histogram",
                "From the request to the answer, the ledger included.");
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < buckets_.size(); ++i)
    {
        sum += buckets_[i];
        out += "dstack_auth_decision_duration_seconds_bucket{le=\"" +
               (i < bounds_us.size() ? seconds(bounds_us[i]) : std::string{"+Inf"}) + "\"} " + std::to_string(sum) + "\n";
    }
    out += "dstack_auth_decision_duration_seconds_sum " + seconds(sum_us_) + "\n";
    out += "dstack_auth_decision_duration_seconds_count " + std::to_string(sum) + "\n";
}

} // namespace dstack::auth
