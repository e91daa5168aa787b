#pragma once
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

// What the benchmark drivers share: the clock, --name value arguments, percentiles, one line of JSON as the result.
namespace dstack::bench
{

inline std::int64_t now_ns()
{
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline std::uint64_t unix_now_ms()
{
    return static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch()).count());
}

[[noreturn]] inline void die(const std::string& why)
{
    std::fprintf(stderr, "%s\n", why.c_str());
    std::exit(1);
}

/// --name value pairs after the verb.
class Arguments
{
  public:
    Arguments(int argc, char** argv)
    {
        for (int i = 2; i + 1 < argc; i += 2)
        {
            const std::string_view name = argv[i];
            if (!name.starts_with("--")) { die("not an option: " + std::string{name}); }
            values_[std::string{name.substr(2)}] = argv[i + 1];
        }
        if (argc % 2 != 0) { die("each option has a value: --name value"); }
    }
    std::string text(const std::string& name, const std::string& otherwise = {}) const
    {
        const auto found = values_.find(name);
        return found == values_.end() ? otherwise : found->second;
    }
    std::size_t number(const std::string& name, std::size_t otherwise = 0) const
    {
        const auto found = values_.find(name);
        return found == values_.end() ? otherwise : static_cast<std::size_t>(std::strtoull(found->second.c_str(), nullptr, 10));
    }

  private:
    std::map<std::string, std::string> values_;
};

/// One object: numbers in the order in which they were added.
class Report
{
  public:
    void add(std::string_view name, double value)
    {
        char number[64];
        std::snprintf(number, sizeof number, "%.3f", value);
        ((((text_ += text_.empty() ? "\"" : ",\"") += name) += "\":") += number);
    }
    /// Percentiles in microseconds; sorts the samples.
    void add_latency(std::vector<std::int64_t>& nanoseconds)
    {
        std::sort(nanoseconds.begin(), nanoseconds.end());
        const auto at = [&](double part)
        {
            if (nanoseconds.empty()) { return 0.0; }
            const auto last = static_cast<double>(nanoseconds.size() - 1);
            return static_cast<double>(nanoseconds[static_cast<std::size_t>(part * last)]) / 1000.0;
        };
        add("p50_us", at(0.5));
        add("p90_us", at(0.9));
        add("p99_us", at(0.99));
        add("p999_us", at(0.999));
        add("max_us", at(1.0));
    }
    void print() const
    {
        std::printf("{%s}\n", text_.c_str());
        std::fflush(stdout);
    }

  private:
    std::string text_;
};

/// JSON objects of one size that look like an event's data. They carry when they were born and a number, at fixed places,
/// so that making one costs next to nothing beside sending it.
class Payload
{
  public:
    explicit Payload(std::size_t size)
    {
        text_ = R"({"born":"00000000000000000000","id":"lease-0000000000","kind":"port","protocol":"tcp","address":"127.0.0.1",)"
                R"("value":20443,"owner":"app-1","state":"bound","since":"2026-01-02T03:04:05.678Z","purpose":")";
        constexpr std::string_view filler = "443/tcp of the guest, forwarded for the owner's public endpoint; ";
        while (text_.size() + 2 < size) { text_ += filler.substr(0, std::min(filler.size(), size - 2 - text_.size())); }
        text_ += "\"}";
    }
    const std::string& make(std::uint64_t number, std::int64_t born_ns)
    {
        put(9, 20, static_cast<std::uint64_t>(born_ns));
        put(43, 10, number);
        return text_;
    }
    /// When an object that one of these made was born, and its number: `text` holds it somewhere.
    struct Stamp
    {
        std::int64_t born_ns = 0;
        std::uint64_t number = 0;
    };
    static std::optional<Stamp> stamp_of(std::string_view text)
    {
        const auto at = text.find("{\"born\":\"");
        if (at == std::string_view::npos || text.size() < at + 53) { return std::nullopt; }
        Stamp stamp;
        std::from_chars(text.data() + at + 9, text.data() + at + 29, stamp.born_ns);
        std::from_chars(text.data() + at + 43, text.data() + at + 53, stamp.number);
        return stamp;
    }

  private:
    void put(std::size_t at, std::size_t digits, std::uint64_t value)
    {
        for (std::size_t i = digits; i-- > 0; value /= 10) { text_[at + i] = static_cast<char>('0' + value % 10); }
    }
    std::string text_;
};

/// Sends `count` things at `rate` a second, on time whatever comes back: `send(n)` sends the n that are due now,
/// `idle(ns)` has until the next one is due.
template <class Send, class Idle>
void pace(std::size_t count, std::size_t rate, Send send, Idle idle)
{
    const std::int64_t began = now_ns();
    const double per_ns = static_cast<double>(rate) * 1e-9;
    for (std::size_t sent = 0; sent < count;)
    {
        const auto due = std::min(count, 1 + static_cast<std::size_t>(static_cast<double>(now_ns() - began) * per_ns));
        if (due > sent) { send(due - sent); }
        sent = std::max(sent, due);
        const std::int64_t pause = began + static_cast<std::int64_t>(static_cast<double>(sent) / per_ns) - now_ns();
        if (pause > 0) { idle(pause); }
    }
}

/// What one subscriber saw: latencies of the events with a number from `first` on, until `last`.
class Watcher
{
  public:
    Watcher(std::uint64_t first, std::uint64_t last) : first_(first), last_(last) { latencies_.reserve(last - first + 1); }
    void see(std::string_view text)
    {
        const std::int64_t now = now_ns();
        const auto stamp = Payload::stamp_of(text);
        if (!stamp) { return; }
        if (stamp->number >= first_ && stamp->number <= last_)
        {
            if (latencies_.empty()) { began_ns_ = stamp->born_ns; }
            ended_ns_ = now;
            latencies_.push_back(now - stamp->born_ns);
        }
        done_ = done_ || stamp->number >= last_;
    }
    bool done() const { return done_; }
    std::uint64_t missed() const { return last_ - first_ + 1 - latencies_.size(); }
    double per_second() const { return static_cast<double>(latencies_.size()) / (static_cast<double>(ended_ns_ - began_ns_) * 1e-9); }
    const std::vector<std::int64_t>& latencies() const { return latencies_; }

  private:
    std::uint64_t first_, last_;
    bool done_ = false;
    std::int64_t began_ns_ = 0;
    std::int64_t ended_ns_ = 0;
    std::vector<std::int64_t> latencies_;
};

/// All subscribers' latencies, and the 99th percentile of the one that is worst off.
inline void report_watchers(Report& report, const std::vector<Watcher>& watchers)
{
    std::vector<std::int64_t> all;
    std::int64_t worst = 0;
    std::uint64_t missed = 0;
    for (const Watcher& watcher : watchers)
    {
        std::vector<std::int64_t> own = watcher.latencies();
        all.insert(all.end(), own.begin(), own.end());
        std::sort(own.begin(), own.end());
        if (!own.empty()) { worst = std::max(worst, own[static_cast<std::size_t>(0.99 * static_cast<double>(own.size() - 1))]); }
        missed += watcher.missed();
    }
    report.add("missed", static_cast<double>(missed));
    report.add("per_second", watchers.front().per_second());
    report.add("worst_p99_us", static_cast<double>(worst) / 1000.0);
    report.add_latency(all);
}

/// Tells the one that started this process that it may go on.
inline void say_ready()
{
    std::puts("ready");
    std::fflush(stdout);
}

} // namespace dstack::bench
