#include "services/guest-agent/line_prefix.hpp"

namespace dstack::guest
{

namespace
{
constexpr std::size_t max_line = 8192;
}

std::string LinePrefix::feed(std::string_view bytes)
{
    std::string out;
    for (const char c : bytes)
    {
        if (c != '\n' && rest_.size() < max_line)
        {
            rest_ += c;
            continue;
        }
        if (!rest_.empty() && rest_.back() == '\r') { rest_.pop_back(); }
        out += prefix_ + rest_ + '\n';
        rest_.clear();
        if (c != '\n') { rest_ += c; }
    }
    return out;
}

std::string LinePrefix::finish()
{
    if (rest_.empty()) { return {}; }
    std::string out = prefix_ + rest_ + '\n';
    rest_.clear();
    return out;
}

} // namespace dstack::guest
