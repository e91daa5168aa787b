#pragma once
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
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
    /// When `data`, which one of these made, was born.
    static std::int64_t born_of(std::string_view data)
    {
        const auto at = data.find("\"born\":\"");
        return at == std::string_view::npos ? 0 : std::strtoll(data.data() + at + 8, nullptr, 10);
    }

  private:
    void put(std::size_t at, std::size_t digits, std::uint64_t value)
    {
        for (std::size_t i = digits; i-- > 0; value /= 10) { text_[at + i] = static_cast<char>('0' + value % 10); }
    }
    std::string text_;
};

} // namespace dstack::bench
